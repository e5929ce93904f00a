"""Config: sparse files are filled with the defaults of transformers 4.40, and come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.openvla import OpenVLA

HUB_CONFIG = {
    "model_type": "openvla",
    "image_sizes": [224, 224],
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "use_fused_vision_backbone": True,
    "pad_token_id": 32000,
    "text_config": {
        "model_type": "llama",
        "pad_token_id": 32000,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    },
    "norm_stats": {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}}},
}


def test_sparse_hub_config_is_filled_with_the_defaults_of_4_40():
    config = OpenVLAConfig(HUB_CONFIG)
    assert config.text["hidden_size"] == 4096
    assert config.text["num_hidden_layers"] == config.text["num_attention_heads"] == 32
    assert config.text["num_key_value_heads"] == 32
    assert config.text["intermediate_size"] == 11008
    assert config.text["rms_norm_eps"] == 1e-6
    assert config.text["rope_theta"] == 10000.0
    assert config.tokenizer_vocab_size == 32000
    assert config.empty_token_id == 29871
    assert config.n_action_bins == 256


def test_real_7b_has_the_published_number_of_weights():
    config = OpenVLAConfig(HUB_CONFIG)
    with torch.device("meta"):
        model = OpenVLA(config)
    used = sum(parameter.numel() for parameter in model.parameters())

    def block(width: int, mlp: int) -> int:
        return 4 * width * width + 2 * width * mlp + 9 * width + mlp

    dino = block(1024, 4096) + 2 * 1024 + 2 * 1024  # last block with layer scales, and the final norm
    siglip = block(1152, 4304) + 2 * 1152
    pool = 4 * 1152**2 + 2 * 1152 * 4304 + 8 * 1152 + 4304
    assert used + dino + siglip + pool == 7_541_237_184
    assert model.num_patches == 256


def test_missing_timm_ids_follow_from_the_backbone_name():
    raw = {key: value for key, value in HUB_CONFIG.items() if key not in ("timm_model_ids", "image_sizes")}
    dino, siglip = OpenVLAConfig({**raw, "vision_backbone_id": "dinosiglip-vit-so-384px"}).towers()
    assert (dino.width, dino.depth, dino.registers, dino.grid) == (1024, 24, 4, 27)
    assert (siglip.width, siglip.depth, siglip.mlp_width, siglip.image_size) == (1152, 27, 4304, 384)
    with pytest.raises(ValueError, match="vision_backbone_id 'clip' is unknown"):
        OpenVLAConfig({**raw, "vision_backbone_id": "clip"}).towers()


def test_save_gives_back_the_fields_that_were_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    config = OpenVLAConfig.from_pretrained(tmp_path)
    (tmp_path / "out").mkdir()
    config.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == HUB_CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "model_type 'llava', wanted 'openvla'"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone false"),
        ({"text_config": {"model_type": "mistral"}}, "only Llama-2 is read"),
    ],
)
def test_other_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OpenVLAConfig({**HUB_CONFIG, **change})


def test_a_folder_without_or_with_a_broken_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in"):
        OpenVLAConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        OpenVLAConfig.from_pretrained(tmp_path)


def test_a_name_on_the_hub_is_answered_with_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"hf download openvla/openvla-7b --local-dir DIR, then DIR"):
        OpenVLAConfig.from_pretrained("openvla/openvla-7b")
    Path("here/it").mkdir(parents=True)
    for folder in ("here/it", "/no/such/folder", "tiny"):
        with pytest.raises(ValueError, match=r"wanted an OpenVLA checkpoint folder$"):
            OpenVLAConfig.from_pretrained(folder)


def test_head_count_that_cannot_be_told_asks_for_the_explicit_field():
    prefix = "vision_backbone.featurizer"
    shapes = {
        f"{prefix}.patch_embed.proj.weight": (50, 3, 14, 14),
        f"{prefix}.blocks.0.mlp.fc1.weight": (200, 50),
    }
    with pytest.raises(ValueError, match="set vision_towers"):
        OpenVLAConfig(HUB_CONFIG).towers(shapes)
