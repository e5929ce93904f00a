"""All heads learn 32 windows of four robots by heart, through one learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import fake_data
from vla_adapt.policy.heads import ActionHead
from vla_adapt.recipe import Recipe
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.loop import collate
from vla_adapt.training.optimizer import clip_per_robot, make_optimizer
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import prepare

ROBOTS = ("ur5e", "bimanual_panda", "franka_panda", "mobile_panda")
# head -> adaptation, steps, learning rate; on kept features a step costs a tenth
RUNS = {
    "tokens": ("full", 60, 2e-3),
    "parallel": ("full", 80, 2e-3),
    "readout": ("frozen", 250, 3e-3),
    "flow": ("frozen", 350, 1e-3),
}


@pytest.fixture(scope="module")
def four_robots(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One episode of eight steps of each."""
    root, sources = tmp_path_factory.mktemp("four"), []
    for seed, robot in enumerate(ROBOTS):
        embodiment = Embodiment.load(robot)
        with RldsWriter(root, f"{robot}_short", embodiment) as writer:
            writer.add("train", fake_data(embodiment, np.random.default_rng(seed), length=8))
        sources.append({"path": str(writer.path), "held_out_split": ""})
    return sources


@pytest.mark.slow
@pytest.mark.parametrize("head", RUNS)
def test_32_windows_are_learned_by_heart(
    make_recipe: Callable[..., Recipe], four_robots: list[dict[str, Any]], tmp_path: Path, head: str
):
    kind, steps, rate = RUNS[head]
    config = {"kind": head, "horizon": 2, "proprio": True} | ({"flow_layers": 2} if head == "flow" else {})
    optimizer = {"learning_rate": rate, "warmup_steps": 10, "schedule": "linear"}
    recipe = make_recipe(
        str(tmp_path), mixture=four_robots, adaptation={"kind": kind}, policy={"head": config},
        train={"steps": steps, "optimizer": optimizer},
    )  # fmt: skip
    setting, accelerator = prepare(recipe), Accelerator(cpu=True)
    use_features(accelerator, Ranks(accelerator), setting)
    windows = [setting.mixture.window(n) for n in range(32)]
    batch = collate(setting.builder, list(setting.robots), windows)[0]
    assert {robot for robot, _ in batch.segments()} == set(ROBOTS)
    learner, groups = setting.learner.train(), setting.learner.groups()
    stepper, schedule = make_optimizer(recipe.train.optimizer, groups, steps)
    for step in range(steps):
        torch.manual_seed(step)
        learner(batch)["loss"].backward()
        clip_per_robot(groups.values(), 1.0)
        stepper.step()
        schedule.step()
        stepper.zero_grad(set_to_none=True)
    learner.eval()
    for robot, rows in batch.segments():
        part, trained = batch.rows(rows), learner.heads[robot]
        assert isinstance(trained, ActionHead)
        error = (trained.predict(learner.model, part) - part.action).abs()[part.action_mask].mean()
        assert error < 0.08, robot
