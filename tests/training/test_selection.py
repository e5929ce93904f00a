"""Whole runs that validate, average, choose and stop: without a trace in training, exact under resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.selection import mean_over_robots
from vla_adapt.training.validation import Metrics, Validator

MakeRecipe = Callable[..., Recipe]
ROBOTS = ("ur5e", "bimanual_panda")
WEIGHTS = ("adapter_model.safetensors", "head.safetensors")


def rows(run: Path, validation: bool) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if ("validation/loss" in row) == validation]


def bundles(run: Path) -> dict[str, bytes]:
    files = [run / "bundles" / robot / name for robot in ROBOTS for name in WEIGHTS]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def trained(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["trained"]


def checkpoints(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").glob("step-*"))


def head_of(run: Path, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether the bundles' heads hold these weights, named as in the learner."""
    return all(
        torch.equal(tensor, tensors[f"heads.{robot}.{name}"])
        for robot in ROBOTS
        for name, tensor in load_file(run / "bundles" / robot / "head.safetensors").items()
    )


def given_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Validations find these, one after the other, in any run."""
    left = iter(losses)

    def look(validator: Validator, progress: float) -> Metrics:
        return {"ur5e": {"loss": next(left)}}

    monkeypatch.setattr(Validator, "__call__", look)


def test_validation_changes_no_training_loss_and_no_byte(
    make_recipe: MakeRecipe, finished_run: Path, tmp_path: Path
):
    options = {"every": 2, "windows": 5, "use_best": False}
    run = loop.train(make_recipe(str(tmp_path / "r"), validation=options))
    assert rows(run, False) == rows(finished_run, False)
    assert bundles(run) == bundles(finished_run)
    found = rows(run, True)
    assert [(row["step"], row["robot"]) for row in found] == [(s, robot) for s in (2, 3) for robot in ROBOTS]
    assert {"validation/token_accuracy", "validation/error"} <= found[0].keys()
    assert any(key.startswith("validation/l1_") and key.endswith("_m") for key in found[0])
    (board,) = (run / "tensorboard").iterdir()
    assert b"validation/ur5e/loss" in board.read_bytes()
    assert trained(run) == "3 of 3 steps"
    kept = checkpoints(run)
    assert len(kept) == 1, "the best"


EVERYTHING: dict[str, Any] = {
    "adaptation": {
        "kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.2, "targets": "attention", "shared": {"rank": 2},
    },
    "policy": {"head": {"kind": "tokens", "horizon": 1, "proprio": True, "label_smoothing": 0.1}},
    "validation": {"every": 2, "windows": 3, "patience": 9, "min_delta": 1e-3, "metric": "error"},
}  # fmt: skip
TRAIN = {
    "steps": 7, "batch_size": 4, "log_every": 3, "save_every": 3, "ema": 0.8, "balance": "uncertainty",
    "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2, "schedule": "cosine"},
}  # fmt: skip


@pytest.mark.slow
def test_everything_on_resumes_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_base: Path
):
    whole = loop.train(make_recipe(str(tmp_path / "whole"), train=TRAIN, **EVERYTHING))
    recipe = make_recipe(str(tmp_path / "cut"), train=TRAIN, **EVERYTHING)
    genuine = loop._check_finite
    for killed_at in (3, 5):

        def die(output: Any, ids: Any, robots: Any, step: int, at: int = killed_at) -> None:
            if step == at:
                raise KeyboardInterrupt
            genuine(output, ids, robots, step)

        monkeypatch.setattr(loop, "_check_finite", die)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe)
    monkeypatch.setattr(loop, "_check_finite", genuine)
    cut = loop.train(recipe)
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert bundles(whole) == bundles(cut)
    assert trained(whole) == trained(cut)
    assert checkpoints(whole) == checkpoints(cut)
    assert "best error" in trained(whole)
    assert trained(whole).endswith("; averaged with decay 0.8")
    for robot in ROBOTS:
        Bundle.load(cut / "bundles" / robot).verify(OpenVLA.from_pretrained(random_base))


@pytest.mark.parametrize("use_best", [True, False])
def test_bundles_are_of_the_best_state_or_of_the_last(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_best: bool
):
    given_losses(monkeypatch, [3.0, 1.0, 2.0, 2.0])
    options = {"every": 1, "use_best": use_best}
    run = loop.train(
        make_recipe(str(tmp_path / "r"), validation=options, train={"steps": 4, "batch_size": 4})
    )
    assert checkpoints(run) == ["step-00000002"]
    kept = load_file(run / "checkpoints" / "step-00000002" / "trained.safetensors")
    assert head_of(run, kept) == use_best
    told = "; weights of step 2, best loss 1 in validation" if use_best else ""
    assert trained(run) == f"4 of 4 steps{told}"
    card = (run / "bundles" / "ur5e" / "README.md").read_text()
    assert f"4 of 4 steps{told}" in card


def test_bundles_and_validation_take_the_average(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    genuine = Validator.__call__

    def look(validator: Validator, progress: float) -> Metrics:
        head = validator._setting.learner.heads["ur5e"]
        seen.append({name: tensor.clone() for name, tensor in head.state_dict().items()})
        return genuine(validator, progress)

    monkeypatch.setattr(Validator, "__call__", look)
    train = {"steps": 3, "batch_size": 4, "ema": 0.9}
    run = loop.train(make_recipe(str(tmp_path / "r"), validation={"every": 3, "windows": 2}, train=train))
    folder = run / "checkpoints" / "step-00000003"
    own = load_file(folder / "trained.safetensors")
    state = torch.load(folder / "optimizer.pt", weights_only=True)["extras"]["average"]
    assert state["updates"] == 3
    assert state["average"].keys() == own.keys()
    assert head_of(run, state["average"])
    assert not head_of(run, own)
    (found,) = seen
    assert all(torch.equal(found[n], state["average"][f"heads.ur5e.{n}"]) for n in found)


def test_it_stops_early_says_why_and_a_kill_then_trains_no_further(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    given_losses(monkeypatch, [3.0, 2.0, 2.5, 2.0, 0.0])
    recipe = make_recipe(
        str(tmp_path / "r"), validation={"every": 1, "patience": 2},
        train={"steps": 9, "batch_size": 4, "log_every": 3},
    )  # fmt: skip
    genuine = loop._leave

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_leave", die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe)
    monkeypatch.setattr(loop, "_leave", genuine)
    run = loop.train(recipe)
    wanted = (
        "4 of 9 steps, stopped early after step 4: no improvement in 2 validation(s), best 2 at 2; "
        "weights of step 2, best loss 2 in validation"
    )
    assert trained(run) == wanted
    assert " ".join(capsys.readouterr().out.split()).count(wanted) == 2, "before and after the kill"
    assert head_of(run, load_file(run / "checkpoints" / "step-00000002" / "trained.safetensors"))
    assert {row["step"] for row in rows(run, False)} == {3, 4}, "the last step is logged"
    assert [row["step"] for row in rows(run, True)] == [1, 2, 3, 4]
    assert bundles(run)


def test_a_best_state_that_is_lost_costs_no_run(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given_losses(monkeypatch, [1.0, 2.0, 3.0])
    genuine = loop.Selection.choose

    def lose(selection: Any, step: int, state: Any, keeper: Any) -> str:
        (keeper.folder.path(1) / "optimizer.pt").unlink()
        return genuine(selection, step, state, keeper)

    monkeypatch.setattr(loop.Selection, "choose", lose)
    run = loop.train(
        make_recipe(str(tmp_path / "r"), validation={"every": 1}, train={"steps": 3, "batch_size": 4})
    )
    lost = "the best, of step 1, is lost: optimizer.pt is missing"
    assert trained(run) == f"3 of 3 steps; weights of step 3 ({lost})"
    assert bundles(run)


def test_every_robot_has_one_say():
    assert (
        mean_over_robots({"a": {"loss": 1.0, "samples": 900}, "b": {"loss": 3.0, "samples": 1}}, "loss") == 2
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_validate_average_and_stop_together(
    make_recipe: MakeRecipe, launcher: Callable[..., Any], tmp_path: Path
):
    """min_delta is so large that only the first validation is an improvement."""
    options = {"every": 2, "windows": 20, "patience": 2, "min_delta": 100.0}
    train = TRAIN | {"steps": 20, "log_every": 2}
    runs = []
    for world in (2, 1):
        recipe = make_recipe(str(tmp_path / str(world)), train=train, **{**EVERYTHING, "validation": options})
        ended = launcher(recipe, world=world)
        assert ended.codes == [0] * world, ended.said[0][-3000:]
        runs.append(Path(recipe.output))
    two, one = (rows(run, True) for run in runs)
    assert [row["step"] for row in two] == [row["step"] for row in one] == [2, 2, 4, 4, 6, 6]
    assert "6 of 20 steps, stopped early after step 6" in trained(runs[0])
    assert [row["validation/samples"] for row in two] == [row["validation/samples"] for row in one]
    first = [[row["validation/loss"] for row in found[:2]] for found in (two, one)]
    assert first[0] == pytest.approx(first[1], rel=0.05), "dropout draws differ with the number of processes"
    for robot in ROBOTS:
        assert (runs[0] / "bundles" / robot / "bundle.json").is_file()
