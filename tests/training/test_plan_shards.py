"""Planned bytes of shards are those of real ones, as one rank of several sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vla_adapt.recipe import Recipe
from vla_adapt.training.fsdp_shards import Shards
from vla_adapt.training.launch_file import Layout
from vla_adapt.training.optimizer import make_optimizer
from vla_adapt.training.parallelism import DDP, FSDP2
from vla_adapt.training.plan import make_plan
from vla_adapt.training.plan_shards import ShardSizes
from vla_adapt.training.setting import prepare

MakeRecipe = Callable[..., Recipe]


@contextmanager
def rank_0_of(world: int) -> Iterator[None]:
    """Collectives go nowhere; shards are cut as ever."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def held(parameter: Any) -> int:
    own = parameter._local_tensor if hasattr(parameter, "_local_tensor") else parameter
    return own.numel() * own.itemsize


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "world"), [("lora", 2), ("full", 3)])
def test_weights_and_moments_are_those_of_the_first_rank(
    make_recipe: MakeRecipe, tmp_path: Path, world: int, kind: str
):
    train = {"steps": 3, "batch_size": 12}
    recipe = make_recipe(str(tmp_path), adaptation={"kind": kind}, train=train)
    plan = make_plan(recipe, Layout(world, FSDP2))
    learner = prepare(recipe).learner
    with rank_0_of(world):
        shards = Shards(learner, torch.device("cpu"))
        own = sum(held(parameter) for parameter in learner.parameters())
        assert own <= plan.memory["weights"] <= own + 10_000  # buffers
        optimizer, _ = make_optimizer(recipe.train.optimizer, shards.groups, 3)
        for group in shards.groups.values():
            for parameter in group:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moments = [value for state in optimizer.state.values() for value in state.values()]
    assert plan.memory["optimizer"] == pytest.approx(sum(t.numel() * t.itemsize for t in moments), rel=0.01)


def test_whole_learners_have_nothing_elsewhere(make_recipe: MakeRecipe, tmp_path: Path):
    learner = prepare(make_recipe(str(tmp_path))).learner
    for way in (DDP, FSDP2):
        sizes = ShardSizes(learner, Layout(2, way))
        heads = list(learner.heads.parameters())
        assert sizes.kept(heads) == 1.0
        assert (sizes.all_elsewhere > 0) == (sizes.gathered() > 0) == (way == FSDP2)
    waiting = ShardSizes(learner, Layout(2, FSDP2, gather_twice=False))
    assert waiting.gathered() > sizes.gathered()
    trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    assert 0.5 <= sizes.kept(trained) < 0.55
    assert ShardSizes(learner, Layout(2, DDP)).kept(trained) == 1.0
