"""The training loop on fake robots: what it leaves, resume, ranks, launches, bad recipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.evaluation.report import write_report
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.resources import tiny_base_dir
from vla_adapt.training import loop, spread
from vla_adapt.training.setting import prepare


def losses(folder: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], row["robot"]): row["loss"] for row in rows}


def test_what_a_run_leaves(finished_run: Path):
    for robot in ("ur5e", "bimanual_panda"):
        files = {file.name for file in (finished_run / "bundles" / robot).iterdir()}
        assert files == {
            "adapter_config.json", "adapter_model.safetensors", "head.json", "head.safetensors",
            "statistics.json", "embodiment.yaml", "golden.npz", "bundle.json", "README.md",
        }  # fmt: skip
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert {row["robot"] for row in rows} == {"ur5e", "bimanual_panda"}
    wanted = {"loss", "token_accuracy", "l1_right_ee_position_delta_m", "l1_right_gripper_opening"}
    assert wanted <= rows[0].keys()
    assert len(json.loads((finished_run / "open_loop.json").read_text())) == 2
    assert list((finished_run / "tensorboard").iterdir())
    timed = [json.loads(line) for line in (finished_run / "throughput.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timed] == [1, 2, 3]
    told = json.loads((finished_run / "summary.json").read_text())["robots"]
    assert {name: facts["data"][0]["steps"] for name, facts in told.items()} == dict.fromkeys(told, 21)
    started = json.loads((finished_run / "environment.json").read_text())
    assert Bundle.load(finished_run / "bundles" / "ur5e").facts["environment"] == started
    assert not (finished_run / "checkpoints").exists()
    assert not (finished_run / "model").exists(), "an adapter run must not save or merge the base"


def test_adapters_differ_between_robots_and_are_trained(finished_run: Path):
    one, two = (
        load_file(finished_run / "bundles" / robot / "adapter_model.safetensors")
        for robot in ("ur5e", "bimanual_panda")
    )
    assert one.keys() == two.keys()
    trained = [bool(tensor.any()) for key, tensor in one.items() if "lora_B" in key]
    assert any(trained), "B stays zero when untrained"
    assert any(not torch.equal(one[key], two[key]) for key in one if "lora_B" in key)


def test_a_finished_run_is_left_alone(finished_run: Path, make_recipe: Callable[..., Recipe]):
    before = (finished_run / "summary.json").stat().st_mtime_ns
    loop.train(make_recipe(str(finished_run)))
    assert (finished_run / "summary.json").stat().st_mtime_ns == before


def test_an_adversary_trains_is_logged_and_thrown_away(
    make_recipe: Callable[..., Recipe], finished_run: Path, tmp_path: Path
):
    run = loop.train(make_recipe(str(tmp_path / "dann"), invariance={"method": "dann", "weight": 0.5}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"invariance_accuracy", "invariance_strength", "invariance_cross_entropy"} <= rows[-1].keys()
    assert 0 < rows[-1]["invariance_strength"] < 0.5
    assert rows[-1]["invariance_accuracy"] == rows[-2]["invariance_accuracy"]
    for robot in ("ur5e", "bimanual_panda"):
        one, two = (load_file(each / "bundles" / robot / "head.safetensors") for each in (run, finished_run))
        assert one.keys() == two.keys()
        assert any(not torch.equal(one[key], two[key]) for key in one)


def test_an_invariance_loss_of_weight_0_changes_nothing_at_all(
    make_recipe: Callable[..., Recipe], finished_run: Path, tmp_path: Path
):
    run = loop.train(make_recipe(str(tmp_path / "off"), invariance={"method": "dann", "weight": 0}))
    assert losses(run) == losses(finished_run)
    for robot in ("ur5e", "bimanual_panda"):
        for file in ("adapter_model.safetensors", "head.safetensors"):
            paths = [each / "bundles" / robot / file for each in (run, finished_run)]
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_padded_slots_get_no_gradient(make_recipe: Callable[..., Recipe], tmp_path: Path):
    """The head's output rows of slots no robot of the batch has must not move."""
    setting = prepare(make_recipe(str(tmp_path)))
    windows = [setting.mixture.window(n) for n in range(16)]
    batch, _ = loop.collate(setting.builder, list(setting.robots), windows)
    setting.learner(batch)["loss"].backward()
    for robot, head in setting.learner.heads.items():
        mask = torch.tensor(setting.robots[robot].action.mask)
        linear = [module for module in head.modules() if isinstance(module, torch.nn.Linear)]
        final = next(module for module in linear if module.out_features == 32)
        assert final.weight.grad is not None
        assert torch.equal(final.weight.grad[~mask], torch.zeros_like(final.weight.grad[~mask]))
        assert final.weight.grad[mask].abs().sum() > 0


def test_resume_equals_an_uninterrupted_run(
    make_recipe: Callable[..., Recipe],
    two_robot_data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Although the data was moved meanwhile."""

    def cut_recipe(folder: str) -> Recipe:
        mixture = [{"path": str(tmp_path / folder / path.parent.name)} for path in two_robot_data.values()]
        return make_recipe(str(tmp_path / "cut"), train=schedule, mixture=mixture)

    schedule = {"steps": 7, "batch_size": 8, "log_every": 3, "save_every": 2, "log_samples": True}
    whole = loop.train(make_recipe(str(tmp_path / "whole"), train=schedule))
    for path in two_robot_data.values():
        shutil.copytree(path.parent, tmp_path / "here" / path.parent.name)
    recipe = cut_recipe("here")
    genuine = loop._check_finite

    def die(output: object, ids: object, robots: object, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt
        genuine(output, ids, robots, step)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_check_finite", die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe)
    monkeypatch.setattr(loop, "_check_finite", genuine)
    (tmp_path / "here").rename(tmp_path / "there")
    cut = loop.train(cut_recipe("there"))
    assert losses(whole) == losses(cut), "step 6 counts the samples of step 4 too, from before the kill"
    samples = [(folder / "samples" / "rank0.tsv").read_text() for folder in (whole, cut)]
    assert samples[0] == samples[1]
    assert samples[0].count("\n") == 7 * 8
    rows = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (whole, cut)]
    assert rows[0] == rows[1], "an interrupted run logs no step twice"
    for robot in ("ur5e", "bimanual_panda"):
        one, two = (load_file(run / "bundles" / robot / "adapter_model.safetensors") for run in (whole, cut))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_resume_on_other_data_is_refused(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = make_recipe(str(tmp_path / "r"), train={"steps": 4, "batch_size": 8, "save_every": 1})
    genuine = loop._check_finite

    def die(output: object, ids: object, robots: object, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt
        genuine(output, ids, robots, step)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_check_finite", die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe)
    monkeypatch.setattr(Mixture, "fingerprint", lambda mixture: "0" * 16)
    with pytest.raises(ValueError, match="draws other samples than the one its state was saved from"):
        loop.train(recipe)


def test_nan_loss_stops_with_a_reason(make_recipe: Callable[..., Recipe], tmp_path: Path):
    train = {"steps": 20, "batch_size": 8, "optimizer": {"learning_rate": 1e30, "warmup_steps": 0}}
    message = (
        r"the loss is .* at step \d+: \d of 8 samples of this process: \w+_fake episode train/\d step \d "
    )
    with pytest.raises(ValueError, match=message):
        loop.train(make_recipe(str(tmp_path / "r"), train=train))


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    genuine = spread.clip_per_robot

    def spoil(groups: Any, clip_norm: float) -> Any:
        norms = genuine(groups, clip_norm)
        return [norms[0] * float("nan"), *norms[1:]] if spoil.calls.pop() == 3 else norms  # type: ignore[attr-defined]

    spoil.calls = [4, 3, 2, 1]  # type: ignore[attr-defined]
    monkeypatch.setattr(spread, "clip_per_robot", spoil)
    recipe = make_recipe(str(tmp_path / "r"), train={"steps": 4, "batch_size": 4, "save_every": 1})
    message = r"the gradient of ur5e is not finite at step 2, the loss is; this process had \w+_fake episode "
    with pytest.raises(ValueError, match=message):
        loop.train(recipe)
    assert (tmp_path / "r" / "checkpoints" / "latest").read_text() == "step-00000002\n"


def test_dropout_is_off_when_the_golden_pair_is_made(
    make_recipe: Callable[..., Recipe], tmp_path: Path, random_base: Path
):
    method = {"kind": "lora", "rank": 4, "alpha": 64, "dropout": 0.5, "targets": "all_linear"}
    train = {"steps": 3, "batch_size": 8, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}}
    folder = loop.train(make_recipe(str(tmp_path / "r"), adaptation=method, train=train))
    Bundle.load(folder / "bundles" / "ur5e").verify(OpenVLA.from_pretrained(random_base))


METHODS: dict[str, dict[str, Any]] = {
    "full": {}, "frozen": {}, "none": {}, "last_n": {"layers": 1},
    "staged": {"stages": [{"from_step": 0, "train": ["head"]}, {"from_step": 1, "train": ["language"]}]},
}  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
def test_other_methods_run_and_verify(
    make_recipe: Callable[..., Recipe], tmp_path: Path, random_base: Path, kind: str
):
    steps = 0 if kind == "none" else 2
    folder = loop.train(
        make_recipe(
            str(tmp_path / kind),
            adaptation={"kind": kind} | METHODS[kind],
            train={"steps": steps, "batch_size": 4},
        )
    )
    base = folder / "model" if kind in ("full", "last_n", "staged") else random_base
    for robot in ("ur5e", "bimanual_panda"):
        bundle = Bundle.load(folder / "bundles" / robot)
        assert not bundle.adapter
        bundle.verify(OpenVLA.from_pretrained(base))


@pytest.mark.slow
def test_token_head_trains_and_verifies(
    make_recipe: Callable[..., Recipe], tmp_path: Path, random_base: Path
):
    head = {"kind": "tokens", "horizon": 1, "proprio": False}
    folder = loop.train(make_recipe(str(tmp_path / "tokens"), policy={"head": head}))
    for robot in ("ur5e", "bimanual_panda"):
        Bundle.load(folder / "bundles" / robot).verify(OpenVLA.from_pretrained(random_base))


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate fixes the precision once per process; let a test choose another one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_bfloat16_run_verifies_on_its_base_in_float32(make_recipe: Callable[..., Recipe], tmp_path: Path):
    head = {"kind": "parallel", "horizon": 8, "proprio": True}
    train = {"steps": 1, "batch_size": 4, "precision": "bf16"}
    folder = loop.train(make_recipe(str(tmp_path / "r"), base="tiny", policy={"head": head}, train=train))
    for robot in ("ur5e", "bimanual_panda"):
        result = Bundle.load(folder / "bundles" / robot).verify(OpenVLA.from_pretrained(tiny_base_dir()))
        assert 1e-4 < result.max_difference <= result.tolerance == 0.1


def test_nothing_held_out(
    make_recipe: Callable[..., Recipe], two_robot_data: dict[str, Path], tmp_path: Path
):
    mixture = [{"path": str(two_robot_data["ur5e"]), "held_out_split": ""}]
    recipe = make_recipe(str(tmp_path / "r"), mixture=mixture)
    folder = loop.train(recipe)
    assert json.loads((folder / "open_loop.json").read_text()) == []
    bundle = Bundle.load(folder / "bundles" / "ur5e")
    assert "held-out error | not measured" in bundle.card
    assert bundle.golden is not None
    first = open_dataset(two_robot_data["ur5e"])[0]
    assert np.array_equal(bundle.golden.image, first.image(0))
    bundle.verify(OpenVLA.from_pretrained(recipe.base))
    write_report([folder], tmp_path / "report.html")
    assert "Open loop" not in (tmp_path / "report.html").read_text()


def test_a_held_out_split_that_is_not_there_is_named(
    make_recipe: Callable[..., Recipe], two_robot_data: dict[str, Path], tmp_path: Path
):
    mixture = [{"path": str(two_robot_data["ur5e"]), "held_out_split": "vall"}]
    with pytest.raises(
        ValueError, match=r"held_out_split: .*did you mean 'val'.*an empty one holds nothing out"
    ):
        prepare(make_recipe(str(tmp_path), mixture=mixture))


def test_loader_processes_change_nothing(
    make_recipe: Callable[..., Recipe], tmp_path: Path, finished_run: Path
):
    train = {"steps": 3, "batch_size": 8, "log_every": 1, "workers": 1}
    assert losses(loop.train(make_recipe(str(tmp_path / "r"), train=train))) == losses(finished_run)


def test_batch_must_split_evenly(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Three:
        num_processes = 3

    monkeypatch.setattr(loop, "start_accelerator", lambda precision, patience: Three())
    with pytest.raises(ValueError, match="batch_size 8 cannot be split over 3 processes"):
        loop.train(make_recipe(str(tmp_path / "r")))
