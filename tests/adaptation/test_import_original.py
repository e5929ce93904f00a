"""Adapters that the original saved: as bundles they act as the original with PEFT's merged weights does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vla_adapt.adaptation.bank import Bank
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.export import export_bundle
from vla_adapt.adaptation.factors import read_factors
from vla_adapt.adaptation.import_original import ImportChoices, golden_image, import_adapter, read_image
from vla_adapt.adaptation.merge import merge_bundle
from vla_adapt.adaptation.merge_check import difference, golden_of, hidden_and_logits
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.preprocess import ImagePreprocessor
from vla_adapt.policy.prompt import PromptTokenizer
from vla_adapt.policy.tiny import build_tiny_base

WIDOWX, PANDA = Embodiment.load("widowx"), Embodiment.load("franka_panda")
OBSERVATIONS = [
    (np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8), prompt)
    for seed, prompt in enumerate(("lift the cube", "put the spoon on the towel", "push the button"))
]


@pytest.fixture(scope="session")
def imported(
    saved_adapter: Path, original_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The saved adapter as a bundle of the WidowX: `.folder`, `.report`."""
    folder = tmp_path_factory.mktemp("imported") / "widowx"
    return SimpleNamespace(folder=folder, report=import_adapter(saved_adapter, original_base, WIDOWX, folder))


@pytest.fixture(scope="session")
def original_action(
    saved_adapter: Path,
    original_base: Path,
    original_stack: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[np.ndarray, str], np.ndarray]:
    """`predict_action` of the original's merged checkpoint, merged by PEFT on the original's own modules."""
    merged = original_stack.merged(original_base, saved_adapter)
    folder = original_stack.write_base(tmp_path_factory.mktemp("merged") / "m", original_base, merged)
    model, tokens = OpenVLA.from_pretrained(folder), PromptTokenizer.from_pretrained(folder)
    images = ImagePreprocessor.from_pretrained(folder)

    def act(image: np.ndarray, prompt: str) -> np.ndarray:
        ids, mask = tokens([prompt])
        return model.predict_action(ids, "ds_a", pixel_values=images([image]), attention_mask=mask)

    return act


def test_it_acts_as_the_original_predicts(imported, original_base, original_action):
    policy = Bundle.load(imported.folder).attach(OpenVLA.from_pretrained(original_base))
    actions = []
    for image, prompt in OBSERVATIONS:
        wanted = original_action(image, prompt)
        wanted[6] = wanted[6].clip(0, 1)  # a WidowX's gripper is 1 open, 0 closed, as the original's
        got = policy.act({"images": {"primary": image}, "prompt": prompt})
        np.testing.assert_allclose(got, wanted[None], atol=1e-6)
        actions.append(got)
    assert np.ptp(np.stack(actions)[:, 0, :6], axis=0).max() > 0.05  # the observations matter


def test_another_robots_gripper_and_units_are_its_own(
    saved_adapter, original_base, original_action, tmp_path
):
    import_adapter(saved_adapter, original_base, PANDA, tmp_path / "b")
    policy = Bundle.load(tmp_path / "b").attach(OpenVLA.from_pretrained(original_base))
    image, prompt = OBSERVATIONS[0]
    wanted = original_action(image, prompt)
    wanted[6] = 1 - 2 * wanted[6].clip(0, 1)  # robosuite: -1 open, 1 closed
    got = policy.act({"images": {"primary": image}, "prompt": prompt})
    np.testing.assert_allclose(got, wanted[None], atol=1e-6)


def test_merging_it_gives_pefts_merged_weights(
    imported, saved_adapter, original_base, original_stack, tmp_path
):
    report = merge_bundle(imported.folder, original_base, tmp_path / "m")
    ours = load_file(tmp_path / "m" / "model.safetensors")
    theirs = original_stack.merged(original_base, saved_adapter)
    assert ours.keys() == theirs.keys()
    idle = tuple(f"{module}." for module in imported.report.dropped)
    for name, wanted in theirs.items():
        if not name.startswith(idle):
            torch.testing.assert_close(ours[name], wanted, atol=1e-6, rtol=0)
    assert report.chunk_difference == 0


def test_what_never_runs_is_dropped_and_counted(imported, original_base):
    report = imported.report
    last = len(OpenVLA.from_pretrained(original_base).vision_backbone.featurizer.encoder.layer)
    assert (report.modules, len(report.dropped), report.unnorm_key) == (20 + 12 * last, 13, "ds_a")
    assert f"vision_backbone.featurizer.blocks.{last}.attn.qkv" in report.dropped
    assert "vision_backbone.fused_featurizer.attn_pool.kv" in report.dropped
    bundle = Bundle.load(imported.folder)
    assert bundle.adapter_config is not None
    assert (bundle.adapter_config.r, bundle.adapter_config.lora_alpha) == (32, 16)
    assert not bundle.adapter_config.rank_pattern
    factors = read_factors(bundle.adapter_config, bundle.adapter)
    assert "language_model.lm_head" in factors
    assert "vision_backbone.featurizer.embeddings.projection" in factors
    attention = "vision_backbone.featurizer.encoder.layer.0.attention"
    assert torch.equal(factors[f"{attention}.q_proj"].a, factors[f"{attention}.v_proj"].a)
    assert bundle.facts["imported"]["dropped_modules"] == list(report.dropped)
    assert bundle.facts["environment"][0]["packages"]["torch"]


def test_the_golden_pair_is_replayed_and_no_state_is_wanted(imported, original_base):
    bundle = Bundle.load(imported.folder)
    result = bundle.verify(OpenVLA.from_pretrained(original_base))
    assert result.max_difference == 0
    assert bundle.golden is not None
    assert np.array_equal(bundle.golden.image, golden_image())
    assert "imported from the original finetune.py" in bundle.card


def test_it_is_served_without_a_state(imported, original_base):
    bank = Bank(OpenVLA.from_pretrained(original_base), [Bundle.load(imported.folder)])
    assert bank.robots()["widowx"]["state_required"] is False
    image, prompt = OBSERVATIONS[0]
    alone = bank.act("widowx", {"images": {"primary": image}, "prompt": prompt})[0]
    assert alone.shape == (1, 7)
    given = {"images": {"primary": image}, "prompt": prompt, "state": np.ones(7, np.float32)}
    assert np.array_equal(bank.act("widowx", given)[0], alone)


@pytest.mark.parametrize("robot", ["franka_panda", "widowx"])
@pytest.mark.parametrize("which", ["original_base", "random_base"])
def test_export_and_import_give_the_same_function(
    make_bundle, request: pytest.FixtureRequest, tmp_path, robot: str, which: str
):
    base = request.getfixturevalue(which)
    first = make_bundle(base, robot, use_rslora=robot == "widowx")
    export_bundle(first, "openvla", tmp_path / "e")
    import_adapter(tmp_path / "e", base, Embodiment.load(robot), tmp_path / "b")
    ours, back = Bundle.load(first), Bundle.load(tmp_path / "b")
    assert back.embodiment == ours.embodiment
    assert back.adapter.keys() == ours.adapter.keys()
    assert all(torch.equal(back.adapter[key], ours.adapter[key]) for key in ours.adapter)
    np.testing.assert_allclose(back.action_statistics.q99, ours.action_statistics.q99, atol=1e-12)
    outputs = []
    for bundle in (ours, back):
        policy = bundle.attach(OpenVLA.from_pretrained(base))
        outputs.append(
            (
                hidden_and_logits(policy, golden_of(ours), True),
                policy.act(golden_of(ours).observation("primary")),
            )
        )
    assert difference(outputs[1][0], outputs[0][0]) < 1e-6
    np.testing.assert_allclose(outputs[1][1], outputs[0][1], atol=1e-6)


def test_import_and_export_give_the_same_adapter(imported, saved_adapter, tmp_path):
    export_bundle(imported.folder, "openvla", tmp_path / "e")
    first, again = (
        load_file(folder / "adapter_model.safetensors") for folder in (saved_adapter, tmp_path / "e")
    )
    kept = {
        key for key in first if ".lora_" in key and not any(f".{m}." in key for m in imported.report.dropped)
    }
    assert again.keys() == kept
    assert all(torch.equal(again[key], first[key]) for key in kept)


def test_an_own_golden_image_and_center_crop(saved_adapter, original_base, tmp_path):
    Image.fromarray(OBSERVATIONS[0][0]).save(tmp_path / "view.png")
    choices = ImportChoices(
        image=read_image(tmp_path / "view.png"), prompt="stack the bowls", center_crop=0.9
    )
    import_adapter(saved_adapter, original_base, WIDOWX, tmp_path / "b", choices)
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.observation.center_crop == 0.9
    assert bundle.golden is not None
    assert bundle.golden.prompt == "stack the bowls"
    assert np.array_equal(bundle.golden.image, OBSERVATIONS[0][0])
    bundle.verify(OpenVLA.from_pretrained(original_base))
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(tmp_path / "notes.png")


def test_image_aug_in_the_folders_name_is_said(saved_adapter, original_base, tmp_path):
    named = Path(shutil.copytree(saved_adapter, tmp_path / "vla+ds--image_aug"))
    report = import_adapter(named, original_base, WIDOWX, tmp_path / "b")
    assert "--center-crop 0.9" in report.notes[-1]


def refused(words: str, folder: Path, base: Path, out: Path, robot: Embodiment = WIDOWX, **choices) -> None:
    with pytest.raises(ValueError, match=words):
        import_adapter(folder, base, robot, out, ImportChoices(**choices))
    assert not out.exists()


def test_statistics_are_never_guessed(adapter_copy, original_base, tmp_path):
    file, out = adapter_copy / "dataset_statistics.json", tmp_path / "b"
    both = json.loads((original_base / "config.json").read_text())["norm_stats"]
    file.write_text(json.dumps(both))
    refused("2 datasets; pass unnorm_key, one of: ds_a, ds_b", adapter_copy, original_base, out)
    refused(r"no statistics for unnorm_key 'ds_c'.*Keys there: ds_a, ds_b", adapter_copy, original_base, out,
            unnorm_key="ds_c")  # fmt: skip
    refused("its mask is true .or there is no mask", adapter_copy, original_base, out, unnorm_key="ds_b")
    both["ds_a"]["action"]["q01"][2] = float("nan")
    file.write_text(json.dumps(both))
    refused("must be finite", adapter_copy, original_base, out, unnorm_key="ds_a")
    file.unlink()
    refused("no statistics file", adapter_copy, original_base, out)
    report = import_adapter(
        adapter_copy, original_base, WIDOWX, out, ImportChoices(original_base / "config.json", "ds_a")
    )
    assert report.unnorm_key == "ds_a"


def test_the_wrong_robot_or_base_is_refused(saved_adapter, original_base, tmp_path):
    out = tmp_path / "b"
    refused("but bimanual_panda has 14", saved_adapter, original_base, out, Embodiment.load("bimanual_panda"))
    refused("did you mean 'primary'", saved_adapter, original_base, out, camera="primry")
    tiny = build_tiny_base(tmp_path / "tiny", seed=0)
    refused(
        "modules that base .* lacks|it belongs to another base|it was trained on another base",
        saved_adapter,
        tiny,
        out,
    )
    other = Path(shutil.copytree(original_base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["language_model.lm_head.weight"] += 0.1
    save_file(tensors, other / "model.safetensors")
    refused(r"'language_model\.lm_head\.weight', which PEFT saved along", saved_adapter, other, out)


def test_what_is_there_stays_unless_asked(saved_adapter, original_base, tmp_path):
    out = tmp_path / "b"
    out.mkdir()
    (out / "diary").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another folder"):
        import_adapter(saved_adapter, original_base, WIDOWX, out)
    with pytest.raises(ValueError, match=r"holds no bundle\.json"):
        import_adapter(saved_adapter, original_base, WIDOWX, out, overwrite=True)
    assert (out / "diary").read_text() == "mine"
