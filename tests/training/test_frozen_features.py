"""Cached features of a frozen backbone: the same losses, no image read, made anew when anything changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import MemoryDataset, fake_data
from vla_adapt.policy.batch import BatchBuilder
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import build_tiny_base
from vla_adapt.recipe import Recipe
from vla_adapt.training import feature_store, frozen_features, loop
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Setting, prepare

MakeRecipe = Callable[..., Recipe]
HEAD = {"kind": "readout", "horizon": 4}


@pytest.fixture
def make(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """`make(output, head=..., **changes)`: a frozen recipe that keeps its features in this test's folder."""

    def made(output: str, head: dict[str, Any] | None = None, cache: bool = True, **changes: Any) -> Recipe:
        method = {"kind": "frozen", "cache": cache, "cache_dir": str(tmp_path / "cache")}
        given = {"policy": {"head": head or HEAD}, "adaptation": method} | changes
        return make_recipe(str(tmp_path / output), **given)

    return made


def cached(recipe: Recipe) -> tuple[Setting, str | None]:
    accelerator, setting = Accelerator(cpu=True), prepare(recipe)
    return setting, use_features(accelerator, Ranks(accelerator), setting)


def stores(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache").rglob("features-*")}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["readout", "flow"])
def test_a_cached_run_has_the_losses_of_an_uncached_one(make: MakeRecipe, random_base: Path, kind: str):
    head = {"kind": kind, "horizon": 4}
    plain = loop.train(make("plain", head, cache=False))
    kept = loop.train(make("kept", head, train={"steps": 3, "batch_size": 8, "log_every": 1, "workers": 1}))
    assert losses(kept) == pytest.approx(losses(plain), rel=2e-3)
    assert losses(kept) != losses(plain), "float16 rounds"
    for robot in ("ur5e", "bimanual_panda"):
        Bundle.load(kept / "bundles" / robot).verify(OpenVLA.from_pretrained(random_base))


def test_no_image_is_decoded_and_no_backbone_runs(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch):
    setting, note = cached(make("first"))
    assert note is not None
    assert "features of the frozen backbone: 0.2 MB" in note
    monkeypatch.setattr(frozen_features, "_fill", None)
    monkeypatch.setattr(OpenVLA, "encode", None)
    setting, _ = cached(make("second"))
    window = setting.mixture.window(0)
    assert window["images"] == {}
    batch, ids = loop.collate(
        setting.builder, list(setting.robots), [setting.mixture.window(n) for n in range(8)]
    )
    assert batch.pixel_values.numel() == batch.input_ids.numel() == 0
    assert batch.summary is not None
    assert setting.learner(batch)["loss"].isfinite()
    assert [each.sample for each in ids] != list(range(8)), "rows are sorted by robot, summaries with them"


def test_each_row_gets_its_own_summary(make: MakeRecipe):
    plain, kept = prepare(make("plain")), cached(make("kept"))[0]
    batches = []
    for setting in (plain, kept):
        windows = [setting.mixture.window(n) for n in range(12)]
        batches.append(loop.collate(setting.builder, list(setting.robots), windows)[0])
    head = frozen_features._head(plain)
    wanted = frozen_features._summaries(plain.learner.model, head, batches[0])
    np.testing.assert_allclose(batches[1].summary.numpy(), wanted, atol=2e-3, rtol=2e-3)
    assert torch.equal(batches[0].action, batches[1].action)
    assert torch.equal(batches[0].proprio, batches[1].proprio)


def test_several_cameras_are_kept_and_those_that_are_not_there_stay_masked(make: MakeRecipe):
    """Of the two robots only the UR5e has a wrist camera."""
    policy = {"head": HEAD, "more_cameras": ["wrist"]}
    plain, (kept, note) = prepare(make("plain", policy=policy)), cached(make("kept", policy=policy))
    assert note is not None
    outputs, masks = [], []
    for setting in (plain, kept):
        windows = [setting.mixture.window(n) for n in range(8)]
        batch = loop.collate(setting.builder, list(setting.robots), windows)[0]
        outputs.append(setting.learner(batch)["loss_per_sample"])
        masks.append(batch.camera_mask)
    assert torch.equal(masks[0], masks[1])
    assert masks[0].all(dim=0).tolist() == [True, False]
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-3, rtol=2e-3)


def test_a_killed_fill_goes_on_where_it_was(
    make: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(frozen_features, "PIECE_BYTES", 5 * 2 * 17 * 128)
    genuine, written = feature_store.FeatureStore.write, []

    def die(store: Any, piece: range, features: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(piece)
        genuine(store, piece, features)

    monkeypatch.setattr(feature_store.FeatureStore, "write", die)
    with pytest.raises(KeyboardInterrupt):
        cached(make("cut"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(before) == 3
    monkeypatch.setattr(feature_store.FeatureStore, "write", genuine)
    cached(make("on"))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(after) == 2 * 5, "21 steps of each dataset, 5 a piece"
    assert before.items() <= after.items()


def test_any_change_makes_features_anew(
    make: MakeRecipe, tmp_path: Path, two_robot_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    cached(make("r"))
    known = stores(tmp_path)
    assert len(known) == 2
    cached(make("r", {**HEAD, "horizon": 2, "hidden": 16}))
    assert stores(tmp_path) == known, "what only the head is like does not matter"
    other = str(build_tiny_base(tmp_path / "other", seed=4))
    changes: list[dict[str, Any]] = [
        {"base": other},
        {"policy": {"head": HEAD, "center_crop": 0.7}},
        {"policy": {"head": HEAD, "blind": True}},
        {"head": {**HEAD, "grid": 2}},
        *(
            {"mixture": [{"path": str(path), **option} for path in two_robot_data.values()]}
            for option in ({"episodes": 2}, {"image_scale": 16})
        ),
    ]
    for change in changes:
        cached(make("r", **change))
        assert len(stores(tmp_path)) == len(known) + 2, change
        known = stores(tmp_path)
    monkeypatch.setattr(frozen_features, "_code", lambda: "new code")
    cached(make("r"))
    assert len(stores(tmp_path)) == len(known) + 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head": {"kind": "parallel", "horizon": 4}}, "parallel head puts tokens of its own"),
        ({"head": {**HEAD, "condition": "token"}}, "the condition is learned in front of the backbone"),
        ({"augmentation": {}}, "every augmented image is seen only once"),
        ({"cache": False}, "adaptation.cache is false"),
    ],
)
def test_where_features_cannot_be_kept_a_note_says_why(
    make: MakeRecipe, tmp_path: Path, change: dict[str, Any], reason: str
):
    setting, note = cached(make("r", **change))
    assert note is None
    assert any(reason in line for line in setting.notes)
    assert setting.builder.summaries is None
    assert stores(tmp_path) == set()


def test_data_without_files_is_not_cached(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch):
    accelerator, setting = Accelerator(cpu=True), prepare(make("r"))
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(0)
    setting.mixture.datasets[0] = MemoryDataset("in memory", robot, [fake_data(robot, rng)])
    note = use_features(accelerator, Ranks(accelerator), setting)
    assert note == "in memory is not on a local disk: the frozen backbone runs in every step"


@pytest.mark.slow
def test_two_processes_fill_one_store(make: MakeRecipe, tmp_path: Path, launcher: Callable[..., Any]):
    whole = loop.train(make("whole"))
    before = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "cache").rglob("*.npy")}
    for path in before:
        (tmp_path / path).unlink()
    launch = launcher(make("two"))
    assert launch.codes == [0, 0], launch.said
    for path, content in before.items():
        one, two = (
            np.frombuffer(each[128:], np.float16) for each in (content, (tmp_path / path).read_bytes())
        )
        np.testing.assert_allclose(one, two, atol=2e-3, rtol=2e-3)
    one, two = (load_file(run / "bundles" / "ur5e" / "head.safetensors") for run in (whole, tmp_path / "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=1e-3)


def test_a_frame_is_seen_with_the_instruction_of_its_step(make: MakeRecipe, monkeypatch: pytest.MonkeyPatch):
    prompts: list[str] = []
    plain = BatchBuilder.observations

    def noted(self: BatchBuilder, seen: list[dict[str, Any]], robots: list[str]) -> Any:
        prompts.extend(each["prompt"] for each in seen)
        return plain(self, seen, robots)

    monkeypatch.setattr(BatchBuilder, "observations", noted)
    robot = Embodiment.load("ur5e")
    data = [fake_data(robot, np.random.default_rng(0), 4) for _ in range(2)]
    data[1].instruction_changes = [(2, "put it down")]
    part = frozen_features._Part(0, range(8), range(1, 8))
    _ = frozen_features._Looks([part], [MemoryDataset("m", robot, data)], prepare(make("plain")).builder)[0]
    assert prompts == data[0].step_instructions[1:] + data[1].step_instructions
    assert prompts[-2:] == ["put it down"] * 2
