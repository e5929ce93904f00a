"""Exports: on the original's modules, loaded by PEFT, they change exactly what the bundle changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.export import export_bundle
from vla_adapt.adaptation.method import activate
from vla_adapt.policy.naming import to_original
from vla_adapt.policy.openvla import OpenVLA

# Known to PEFT 0.11.1, the version the original pins; it refuses a configuration with any other field.
OLD_FIELDS = {
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout",
    "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "fan_in_fan_out",
    "init_lora_weights", "modules_to_save",
}  # fmt: skip
ALL = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2|fc3)"


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ALL},
        {"target_modules": ALL, "use_rslora": True},
        {"target_modules": r".*\.(q_proj|v_proj)", "r": 3, "lora_alpha": 7},
        {"target_modules": r".*\.k_proj", "use_rslora": True},
        {
            "target_modules": r".*\.(q_proj|k_proj|v_proj)",
            "rank_pattern": {r".*\.layer.*k_proj": 2},
            "alpha_pattern": {r".*\.v_proj": 3},
        },
    ],
    ids=["all", "rslora", "q and v", "k alone, rslora", "ranks and scales differ"],
)
def test_the_originals_merged_weights_are_ours(
    make_bundle: Callable[..., Path],
    random_base: Path,
    tmp_path: Path,
    original_stack: SimpleNamespace,
    same_tensors: Callable,
    lora: dict,
):
    bundle = make_bundle(random_base, **lora)
    report = export_bundle(bundle, "openvla", tmp_path / "e")
    theirs = original_stack.merged(random_base, tmp_path / "e")
    ours = PeftModel.from_pretrained(OpenVLA.from_pretrained(random_base), str(bundle)).merge_and_unload()
    wanted = load_file(random_base / "model.safetensors") | to_original(ours.state_dict())
    assert same_tensors(theirs, wanted) < 1e-6
    changed = sum(
        not torch.equal(wanted[n], t) for n, t in load_file(random_base / "model.safetensors").items()
    )
    assert report.modules == changed


def test_fused_projections_have_threefold_rank(tiny_bundle: Path, tmp_path: Path):
    report = export_bundle(tiny_bundle, "openvla", tmp_path / "e")
    config = json.loads((tmp_path / "e" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], report.largest_rank) == (4, 8, 12)
    fused = [
        f"vision_backbone.{tower}.blocks.{block}.attn.qkv"
        for tower in ("featurizer", "fused_featurizer")
        for block in range(2)
    ]
    assert config["rank_pattern"] == dict.fromkeys(fused, 12)
    assert config["alpha_pattern"] == dict.fromkeys(fused, 24)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert set(fused) < set(config["target_modules"])
    assert config.keys() == OLD_FIELDS
    tensors = load_file(tmp_path / "e" / "adapter_model.safetensors")
    assert tensors[f"base_model.model.{fused[0]}.lora_B.weight"].shape == (192, 12)


def test_export_writes_the_same_bytes_again(tiny_bundle: Path, tmp_path: Path):
    for name in ("one", "two"):
        export_bundle(tiny_bundle, "openvla", tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_plain_peft_loads_on_our_model(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    export_bundle(tiny_bundle, "peft", tmp_path / "e")
    plain = PeftModel.from_pretrained(OpenVLA.from_pretrained(random_base), str(tmp_path / "e")).eval()
    base = OpenVLA.from_pretrained(random_base)
    Bundle.load(tiny_bundle).attach(base)
    activate(base, "franka_panda")
    inputs = {
        "input_ids": torch.tensor([[1, 30, 40, 50]]),
        "pixel_values": torch.randn(1, 6, 84, 84, generator=torch.Generator().manual_seed(0)),
    }
    with torch.no_grad():
        assert torch.allclose(plain(**inputs).logits, base(**inputs).logits, atol=1e-6)


def test_statistics_head_and_readme_lie_beside_it(tiny_bundle: Path, tmp_path: Path):
    export_bundle(tiny_bundle, "openvla", tmp_path / "e")
    entry = json.loads((tmp_path / "e" / "dataset_statistics.json").read_text())["franka_panda"]
    assert entry["unified_slots"][6] == "right_gripper"
    for name in ("head.json", "head.safetensors"):
        assert (tmp_path / "e" / name).read_bytes() == (tiny_bundle / name).read_bytes()
    readme = (tmp_path / "e" / "README.md").read_text()
    assert "AutoModelForVision2Seq" in readme
    assert "`predict_action` does not know it" in readme


def test_the_originals_own_head_is_left_out(
    make_bundle: Callable[..., Path], random_base: Path, tmp_path: Path
):
    export_bundle(make_bundle(random_base), "openvla", tmp_path / "e")
    assert sorted(file.name for file in (tmp_path / "e").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "dataset_statistics.json",
    ]  # fmt: skip


def test_what_cannot_be_exported_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "diary").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another folder"):
        export_bundle(tiny_bundle, "openvla", tmp_path / "e")
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        export_bundle(tiny_bundle, "openvla", tmp_path / "e", overwrite=True)
    with pytest.raises(ValueError, match="is the bundle itself"):
        export_bundle(tiny_bundle, "openvla", tiny_bundle, overwrite=True)
    bundle = Bundle.load(tiny_bundle)
    bundle.adapter_config = None
    monkeypatch.setattr(Bundle, "load", staticmethod(lambda folder: bundle))
    with pytest.raises(ValueError, match="nothing to export"):
        export_bundle(tiny_bundle, "openvla", tmp_path / "new")
    bundle.adapter_config = LoraConfig(use_dora=True)
    with pytest.raises(ValueError, match="only plain LoRA"):
        export_bundle(tiny_bundle, "openvla", tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["e"]
