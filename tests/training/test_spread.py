"""Whole learners as ever; what was in shards is whole again when training ends (see `test_fsdp_shards`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.parallelism import ONE
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.spread import Whole, make_whole, spread_over


@pytest.fixture
def setting(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Setting:
    method = {"kind": "lora", "rank": 2, "targets": "attention", "shared": {"rank": 2}}
    return prepare(make_recipe(str(tmp_path), adaptation=method))


def test_whole_learners_are_clipped_per_robot_and_cleared(setting: Setting):
    accelerator = Accelerator(cpu=True)
    spread = spread_over(accelerator, ONE, setting.learner)
    assert isinstance(spread, Whole)
    assert spread.groups.keys() == {"ur5e", "bimanual_panda", "shared"}
    optimizer = torch.optim.SGD([p for group in spread.groups.values() for p in group], lr=0.1)
    module, prepared = spread.prepare(optimizer)
    windows = [setting.mixture.window(number) for number in range(4)]
    batch = loop.collate(setting.builder, list(setting.robots), windows)[0]
    for last in (False, True):
        with spread.passing(last):
            (module(batch)["loss"] * 1e3).backward()
    assert all(norm > 0.5 for norm in spread.settle(set(batch.robots), clip_norm=0.5))
    for group in spread.groups.values():
        norms = [p.grad.norm() for p in group if p.grad is not None]
        assert torch.stack(norms).norm().item() == pytest.approx(0.5, rel=1e-3)
    spread.clear(prepared)
    assert all(p.grad is None for p in setting.learner.parameters())


def test_what_was_trained_in_shards_is_put_on_a_fresh_base(setting: Setting):
    old, ranks = setting.learner, Ranks(Accelerator(cpu=True))
    make_whole(None, setting, ranks, torch.device("cpu"))
    assert setting.learner is old
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(torch.randn_like(parameter) if parameter.requires_grad else 1.0)
    weights = {name: p.detach().clone() for name, p in old.named_parameters() if p.requires_grad}
    others = dict.fromkeys(("put_weight", "optimizer_state", "part_of_optimizer_state"), prepare)
    sharding: Any = SimpleNamespace(weights=lambda: weights, **others)
    make_whole(sharding, setting, ranks, torch.device("cpu"))
    new = dict(setting.learner.named_parameters())
    assert new.keys() == dict(old.named_parameters()).keys()
    for name, parameter in old.named_parameters():
        assert torch.equal(new[name], parameter) == parameter.requires_grad, name
