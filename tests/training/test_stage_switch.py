"""Stages: what rests gets no gradient and no update; outside of a step all that ever trains is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.setting import prepare
from vla_adapt.training.stage_switch import StageSwitch

MakeRecipe = Callable[..., Recipe]
STAGES = [
    {"from_step": 0, "train": ["head"], "learning_rate": 1e-3},
    {"from_step": 2, "train": ["head", {"last_n": 1}], "learning_rate": 1e-4},
    {"from_step": 4, "train": ["vision"], "learning_rate": 1e-5},
]
STAGED = {"kind": "staged", "stages": STAGES}
TRAIN = {
    "steps": 6, "batch_size": 4, "log_every": 1, "save_every": 1,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.1},
}  # fmt: skip


def test_resting_parameters_have_no_gradient_in_a_step_only(make_recipe: MakeRecipe, tmp_path: Path):
    setting = prepare(make_recipe(str(tmp_path), adaptation=STAGED, train=TRAIN))
    learner = setting.learner
    everything = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    parts = {"heads", "model.language_model", "model.vision_backbone"}
    assert {next(part for part in parts if name.startswith(part)) for name in everything} == parts
    windows = [setting.mixture.window(n) for n in range(4)]
    batch = loop.collate(setting.builder, list(setting.robots), windows)[0]
    stages = StageSwitch(learner, setting.recipe.adaptation)
    for step, wanted in (
        (0, {"heads"}),
        (3, {"heads", "model.language_model"}),
        (5, {"model.vision_backbone"}),
    ):
        with stages.at(step):
            learner(batch)["loss"].backward()
        got = {name for name, parameter in learner.named_parameters() if parameter.grad is not None}
        assert {next(part for part in parts if name.startswith(part)) for name in got} == wanted
        assert {name for name, p in learner.named_parameters() if p.requires_grad} == everything
        learner.zero_grad(set_to_none=True)
    with pytest.raises(KeyError), stages.at(0):
        raise KeyError
    assert {name for name, p in learner.named_parameters() if p.requires_grad} == everything


def trained(folder: Path) -> dict[str, torch.Tensor]:
    model, head = load_file(folder / "model/model.safetensors"), load_file(folder / "model/head.safetensors")
    return model | {f"head.{name}": tensor for name, tensor in head.items()}


@pytest.mark.slow
def test_a_run_resumes_in_the_middle_of_a_stage(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = loop.train(make_recipe(str(tmp_path / "whole"), adaptation=STAGED, train=TRAIN))
    genuine = loop._check_finite
    for at in (3, 5):

        def die(output: Any, ids: Any, robots: Any, step: int, at: int = at) -> None:
            if step == at:
                raise KeyboardInterrupt
            genuine(output, ids, robots, step)

        monkeypatch.setattr(loop, "_check_finite", die)
        with pytest.raises(KeyboardInterrupt):
            loop.train(make_recipe(str(tmp_path / "cut"), adaptation=STAGED, train=TRAIN))
    monkeypatch.setattr(loop, "_check_finite", genuine)
    cut = loop.train(make_recipe(str(tmp_path / "cut"), adaptation=STAGED, train=TRAIN))
    one, two = trained(whole), trained(cut)
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["learning_rate"] for row in rows}
    assert [rates[step] for step in range(1, 6)] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


@pytest.mark.slow
def test_two_processes_train_in_stages_as_one(
    make_recipe: MakeRecipe, tmp_path: Path, launcher: Callable[..., Any]
):
    whole = loop.train(make_recipe(str(tmp_path / "one"), adaptation=STAGED, train=TRAIN))
    launch = launcher(make_recipe(str(tmp_path / "two"), adaptation=STAGED, train=TRAIN))
    assert launch.codes == [0, 0], launch.said
    one, two = trained(whole), trained(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)
