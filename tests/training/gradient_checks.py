"""What the ranks of `test_fsdp_shards` run: gradients of DDP and shards against the mean of each rank's own.

Not a test: the launch imports it and calls `instead`, which takes the place of the run's inside.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.learner import Learner
from vla_adapt.training.optimizer import clip_per_robot
from vla_adapt.training.parallelism import DDP, FSDP2
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.spread import spread_over

# Passes of one step; of each the robots of the rows of both ranks.
CASES = {
    "a robot that one rank does not see": [("uuu", "ubb")],
    "a robot that no rank sees": [("uu", "u")],
    "two passes": [("u", "b"), ("bb", "uub")],
}
# Adapters, and an adversary whose penalty is differentiated twice; all of the base, and an output layer that
# each rank calls once per robot it sees.
LEARNERS: tuple[dict[str, Any], ...] = (
    {
        "adaptation": {"kind": "lora", "rank": 3, "targets": "all_linear", "shared": {"rank": 2}},
        "policy": {"head": {"kind": "parallel", "horizon": 2, "condition": "token"}},
        "invariance": {"method": "dann", "tap": "hidden"},
    },
    {
        "adaptation": {"kind": "full"},
        "policy": {"head": {"kind": "tokens", "horizon": 1, "proprio": False, "condition": "soft_prompt"}},
    },
)
NAMES = {"u": "ur5e", "b": "bimanual_panda"}
CLIP = 0.05
# Steps of plain descent with decay: weights tell a gradient, and one of zeros from none.
descent = partial(torch.optim.SGD, lr=1.0, weight_decay=0.1)


def check(run: loop.Run, recipe: Recipe, fresh: bool) -> None:
    """Instead of `loop._train`."""
    del fresh
    for changes in LEARNERS:
        tree = recipe.model_dump(mode="json") | changes
        check_learner(run, prepare(Recipe.model_validate(tree)))


def check_learner(run: loop.Run, setting: Setting) -> None:
    for name, passes in CASES.items():
        batches = [make_batch(setting, rows[run.ranks.rank]) for rows in passes]
        wanted, wanted_norms = step_by_hand(copy.deepcopy(setting.learner), batches)
        for way in (DDP, FSDP2):
            learner = copy.deepcopy(setting.learner).train()
            spread = spread_over(run.accelerator, way, learner)
            optimizer = descent([p for group in spread.groups.values() for p in group])
            module, optimizer = spread.prepare(optimizer)
            for number, batch in enumerate(batches):
                with spread.passing(number == len(batches) - 1):
                    (module(batch, 0.5)["loss"] / len(batches)).backward()
            norms = spread.settle({robot for batch in batches for robot in batch.robots}, CLIP)
            assert torch.allclose(torch.stack(norms), wanted_norms, rtol=1e-4)
            assert way == DDP or held(learner.model) < 0.6 * held(setting.learner.model)
            optimizer.step()
            spread.clear(optimizer)
            got = trained(learner) if spread.sharding is None else spread.sharding.weights()
            if run.ranks.is_main:
                compare(name, way, trained(setting.learner), wanted, got)
        run.ranks.wait()


def make_batch(setting: Setting, rows: str) -> PolicyBatch:
    windows = (setting.mixture.window(number) for number in range(10**6))
    wanted, found = [NAMES[row] for row in rows], []
    while wanted:
        window = next(windows)
        if window["robot"] in wanted:
            wanted.remove(window["robot"])
            found.append(window)
    return loop.collate(setting.builder, list(setting.robots), found)[0]


def held(model: nn.Module) -> int:
    """Numbers of the model on this rank."""
    locals_ = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    return sum(part.numel() for part in locals_)


def step_by_hand(learner: Learner, batches: Sequence[PolicyBatch]) -> tuple[dict[str, Tensor], Tensor]:
    """Weights after a step along the mean over ranks of the gradients that each has alone; their norms."""
    learner.train()
    for batch in batches:
        (learner(batch, 0.5)["loss"] / len(batches)).backward()
    for parameter in learner.parameters():
        if parameter.requires_grad:
            used = torch.tensor(float(parameter.grad is not None))
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(used)
            dist.all_reduce(grad)
            parameter.grad = grad / dist.get_world_size() if used else None
    groups = learner.groups()
    norms = clip_per_robot(groups.values(), CLIP)
    descent([p for group in groups.values() for p in group]).step()
    return trained(learner), torch.stack(norms)


def trained(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in learner.named_parameters() if p.requires_grad}


def compare(
    case: str, way: str, before: dict[str, Tensor], wanted: dict[str, Tensor], got: dict[str, Tensor]
) -> None:
    assert wanted.keys() == got.keys() == before.keys()
    worst = max((wanted[name] - got[name]).abs().max().item() for name in wanted)
    still = {name for name in wanted if torch.equal(wanted[name], before[name])}
    assert still == {name for name in got if torch.equal(got[name], before[name])}, f"{case}, {way}"
    assert ("no rank sees" in case) == any("bimanual_panda" in name for name in still), f"{case}, {way}"
    assert worst < 1e-6, f"{case}, {way}: {worst}"
    print(f"{case}, {way}: {len(wanted) - len(still)} tensors moved, {worst:.1g} apart")


def instead(rank: int) -> None:
    del rank
    loop._train = check
