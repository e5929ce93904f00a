"""How a learner lies on the processes of a run: whole on every one (1 process, DDP), or in shards (FSDP2)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vla_adapt.training.fsdp_launch import gathers_twice
from vla_adapt.training.fsdp_shards import Shards
from vla_adapt.training.learner import Learner
from vla_adapt.training.micro_batches import synced_at_last
from vla_adapt.training.optimizer import clip_per_robot
from vla_adapt.training.parallelism import FSDP2, Way
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.run_state import Sharding
from vla_adapt.training.setting import Setting, fresh_learner


class Whole:
    """Every process has all of the learner; Accelerate averages gradients where there are several (DDP).

    Attributes:
        groups: `Learner.groups`, for the optimizer.
        sharding: nothing to put together.
    """

    sharding = None

    def __init__(self, accelerator: Accelerator, learner: Learner) -> None:
        self._accelerator, self._module = accelerator, learner
        self.groups = learner.groups()

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call for a forward pass, and the optimizer to step."""
        self._module, optimizer = self._accelerator.prepare(self._module, optimizer)
        return self._module, optimizer

    def passing(self, last: bool) -> AbstractContextManager[Any]:
        """Around one forward and backward pass: gradients are averaged in the last one of a step only."""
        return synced_at_last(self._accelerator, self._module, last)

    def settle(self, robots: set[str], clip_norm: float) -> list[torch.Tensor]:
        """After the backward passes of a step: clip each robot's gradient; norms of `groups` before."""
        del robots
        return clip_per_robot(self.groups.values(), clip_norm)

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget all gradients."""
        optimizer.zero_grad(set_to_none=True)


Spread = Whole | Shards


def spread_over(accelerator: Accelerator, way: Way, learner: Learner) -> Spread:
    """Lay `learner` out as the launch asked for."""
    if way == FSDP2:
        return Shards(learner, accelerator.device, gathers_twice())
    return Whole(accelerator, learner)


def make_whole(sharding: Sharding | None, setting: Setting, ranks: Ranks, device: torch.device) -> None:
    """After training, collectively: where the learner of `setting` is in shards, rank 0 gets a whole one.

    It is made anew from the base, with all that was trained in it: as a run on one process that resumes.

    Raises:
        ValueError: on all ranks, when the base cannot be read any more.
    """
    if sharding is None:
        return
    weights = sharding.weights()
    ranks.on_main(lambda: _replace(setting, weights, device))


def _replace(setting: Setting, weights: dict[str, torch.Tensor], device: torch.device) -> None:
    fresh = fresh_learner(setting)
    fresh.heads.load_state_dict(setting.learner.heads.state_dict())
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    setting.learner = fresh.to(device)
