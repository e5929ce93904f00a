"""Bundles: complete, whole on disk, plain PEFT, tied to their base, and every damage named in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from vla_adapt.adaptation.bundle import Bundle, Golden, golden_tolerance
from vla_adapt.adaptation.method import activate
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import build_tiny_base


@pytest.fixture
def bundle_dir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished_run / "bundles" / "ur5e", tmp_path / "ur5e"))


@pytest.fixture
def base(random_base: Path) -> OpenVLA:
    return OpenVLA.from_pretrained(random_base)


def test_verify_replays_the_golden_pair(bundle_dir: Path, base: OpenVLA):
    result = Bundle.load(bundle_dir).verify(base)
    assert result.robot == "ur5e"
    assert result.max_difference <= result.tolerance == 1e-3


def test_verify_notices_other_weights(bundle_dir: Path, base: OpenVLA):
    bundle = Bundle.load(bundle_dir)
    policy = bundle.attach(base)
    with torch.no_grad():
        base.projector.fc3.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"differ by .* of the action range"):
        bundle.verify_policy(policy)


def test_golden_pairs_are_made_and_replayed_without_tf32(bundle_dir: Path, base: OpenVLA):
    """Else another kind of GPU, or none, would be taken for other weights."""
    bundle = Bundle.load(bundle_dir)
    policy, seen = bundle.attach(base), []
    base.projector.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert bundle.golden is not None
    assert torch.backends.cudnn.allow_tf32
    bundle.verify_policy(policy)
    golden = bundle.golden
    Golden.record(policy, golden.image, golden.state, golden.prompt, golden.tolerance)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind", ["tokens", "parallel", "readout", "flow"])
def test_a_bfloat16_base_answers_within_the_wider_tolerance(
    kind: str, make_bundle: Callable[..., Path], random_base: Path
):
    """In half the bytes, adapters too; heads stay float32. Its golden pair was recorded in float32."""
    whole, narrow = (OpenVLA.from_pretrained(random_base, dtype) for dtype in (torch.float32, torch.bfloat16))
    bundle = Bundle.load(
        make_bundle(random_base, head=HeadConfig.model_validate({"kind": kind, "horizon": 2}))
    )
    policy, golden = bundle.attach(whole), bundle.golden
    assert golden is not None
    for name, weight in policy.head.named_parameters():
        if name in ("fc2.weight", "expert.leave.weight"):  # a fresh head answers next to nothing
            weight.data.mul_(10)
    bundle.head = policy.head
    bundle.golden = Golden.record(policy, golden.image, golden.state, golden.prompt, 1e-3)

    result = bundle.verify(narrow)
    assert (result.tolerance, result.dtype) == (0.1, torch.bfloat16)
    assert result.max_difference > (-1 if kind == "tokens" else 1e-5), "the same numbers: nothing was rounded"
    assert {weight.dtype for weight in narrow.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in policy.head.parameters()} <= {torch.float32}
    assert sum(w.nbytes for w in whole.parameters()) == 2 * sum(w.nbytes for w in narrow.parameters())

    bundle.golden = replace(bundle.golden, tolerance=0.3)
    assert bundle.verify(narrow).tolerance == 0.3
    bundle.golden = replace(bundle.golden, actions=bundle.golden.actions + 1.0, tolerance=1e-3)
    with pytest.raises(ValueError, match=r"allowed on a base in bfloat16 0\.1\); .* verify it in float32"):
        bundle.verify(narrow)


def test_a_golden_token_may_be_a_neighbor_at_least(base: OpenVLA):
    tokens, parallel = (make_head(HeadConfig(kind=kind), base) for kind in ("tokens", "parallel"))
    assert golden_tolerance(tokens, rounded=False) == 4 / 255
    assert golden_tolerance(parallel, rounded=False) == 1e-3
    assert golden_tolerance(tokens, rounded=True) == golden_tolerance(parallel, rounded=True) == 0.1


def test_load_save_round_trip(bundle_dir: Path, base: OpenVLA, tmp_path: Path):
    bundle = Bundle.load(bundle_dir)
    policy = bundle.attach(base)
    bundle.head = policy.head
    bundle.save(tmp_path / "again")
    again = Bundle.load(tmp_path / "again")
    assert again.embodiment == bundle.embodiment
    assert again.action_statistics == bundle.action_statistics
    assert again.facts == bundle.facts
    assert again.adapter.keys() == bundle.adapter.keys()
    assert all(torch.equal(again.adapter[key], bundle.adapter[key]) for key in bundle.adapter)
    assert again.golden is not None
    assert bundle.golden is not None
    assert np.array_equal(again.golden.actions, bundle.golden.actions)


def test_center_crop_travels_in_the_bundle(bundle_dir: Path, base: OpenVLA, tmp_path: Path):
    bundle = Bundle.load(bundle_dir)
    assert bundle.observation.center_crop == 1
    assert bundle.observation.view is None
    bundle.head = bundle.attach(base).head
    bundle.observation = ObservationConfig(center_crop=True)  # type: ignore[arg-type]
    bundle.save(tmp_path / "cropped")
    again = Bundle.load(tmp_path / "cropped")
    assert again.observation.center_crop == 0.9
    with pytest.raises(ValueError, match="the golden observation gives actions that differ"):
        again.verify(base)


def test_a_bundle_from_before_center_crop_constants_and_rate_is_read(bundle_dir: Path, base: OpenVLA):
    """Version 1 without these keys, as the first runs wrote them."""
    manifest = json.loads((bundle_dir / "bundle.json").read_text())
    assert manifest["rate_hz"] == 20
    del manifest["observation"]["center_crop"], manifest["constants"], manifest["rate_hz"]
    (bundle_dir / "bundle.json").write_text(json.dumps(manifest))
    old = Bundle.load(bundle_dir)
    assert old.rate_hz is None
    old.verify(base)


def test_plain_peft_gives_the_same_logits(bundle_dir: Path, base: OpenVLA, random_base: Path):
    Bundle.load(bundle_dir).attach(base)
    activate(base, "ur5e")
    plain = PeftModel.from_pretrained(OpenVLA.from_pretrained(random_base), str(bundle_dir)).eval()
    size = base.config.image_sizes[0]
    inputs = {
        "input_ids": torch.tensor([[1, 30, 40, 50]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.bool),
        "pixel_values": torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(0)),
    }
    with torch.no_grad():
        ours, theirs = base(**inputs).logits, plain(**inputs).logits
        activate(base, None)
        bare = base(**inputs).logits
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, bare, atol=1e-4)


def test_adapter_config_is_for_inference_and_names_no_machine(bundle_dir: Path):
    config = json.loads((bundle_dir / "adapter_config.json").read_text())
    assert config["inference_mode"] is True
    assert config["base_model_name_or_path"] is None
    for file in ("adapter_config.json", "head.json", "statistics.json", "README.md"):
        assert "/tmp" not in (bundle_dir / file).read_text()


def test_refuses_another_base(bundle_dir: Path, tmp_path: Path):
    other = OpenVLA.from_pretrained(build_tiny_base(tmp_path / "other", seed=4))
    with pytest.raises(ValueError, match=r"bundle of 'ur5e' belongs to base \w{12}, this base is \w{12}"):
        Bundle.load(bundle_dir).verify(other)


def test_missing_tensors_are_named(bundle_dir: Path):
    file = bundle_dir / "adapter_model.safetensors"
    tensors = load_file(file)
    dropped = sorted(tensors)[0]
    total = len(tensors)
    save_file({key: value for key, value in tensors.items() if key != dropped}, file)
    with pytest.raises(ValueError, match=f"1 of {total} tensors are missing .first: {dropped}"):
        Bundle.load(bundle_dir)


def test_tensors_missing_from_manifest_too_are_caught_on_attach(bundle_dir: Path, base: OpenVLA):
    bundle = Bundle.load(bundle_dir)
    bundle.adapter.pop(sorted(bundle.adapter)[0])
    with pytest.raises(ValueError, match="tensors are missing"):
        bundle.attach(base)


def test_nan_tensors_are_refused(bundle_dir: Path, base: OpenVLA):
    bundle = Bundle.load(bundle_dir)
    bundle.adapter[sorted(bundle.adapter)[0]][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        bundle.attach(base)


def test_damage_and_absence_are_named(bundle_dir: Path):
    head = bundle_dir / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"head\.safetensors was changed or damaged"):
        Bundle.load(bundle_dir)
    (bundle_dir / "statistics.json").unlink()
    with pytest.raises(ValueError, match=r"statistics\.json missing"):
        Bundle.load(bundle_dir)


def test_truncated_adapter_is_named(bundle_dir: Path):
    file = bundle_dir / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read"):
        Bundle.load(bundle_dir)


def test_only_a_bundle_is_ever_replaced(bundle_dir: Path, base: OpenVLA, tmp_path: Path):
    """A save takes the folder's place whole, so that anything else in it would be gone."""
    bundle = Bundle.load(bundle_dir)
    bundle.head = bundle.attach(base).head
    thesis = tmp_path / "home" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(ValueError, match=r"home holds no bundle\.json, so it is not replaced"):
        bundle.save(thesis.parent)
    assert thesis.read_text() == "years of work"
    bundle.facts = {"again": True}
    bundle.save(bundle_dir)
    assert Bundle.load(bundle_dir).facts == {"again": True}


def test_card_says_what_it_is(bundle_dir: Path):
    card = Bundle.load(bundle_dir).card
    assert "ur5e_fake: 3 episodes, 21 steps" in card
    assert "library_name: peft" in card
    assert "| image | `primary` |" in card
