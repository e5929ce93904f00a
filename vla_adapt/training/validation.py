"""Validation: what the policy makes of held-out windows, per robot, without a trace in the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Subset

from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.backbone import look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.training.compatibility import why_uncached
from vla_adapt.training.meter import Meter
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Robot, Setting
from vla_adapt.training.stop_signal import spare_once
from vla_adapt.training.validation_windows import HeldOutBatches
from vla_adapt.types import slot_group_of

Metrics = dict[str, dict[str, float]]  # robot -> name -> number


class Validator:
    """Collective. Each process takes every n-th batch; sums are added up in the order of batches.

    So the numbers are the same, bit for bit, on any number of processes. All processes make equally many
    passes (some twice, to no effect), which sharded models need.
    """

    def __init__(self, accelerator: Accelerator, ranks: Ranks, setting: Setting) -> None:
        self._accelerator, self._ranks, self._setting = accelerator, ranks, setting
        self._robots = setting.robots
        self._batches = HeldOutBatches(setting, setting.recipe.validation.windows)
        self._meter = Meter({name: robot.normalizers[0] for name, robot in self._robots.items()})
        self._keeps = why_uncached(setting.recipe) is None  # the frozen backbone is asked once
        self._kept: dict[int, PolicyBatch] = {}
        assert len(self._batches), "checked by `prepare`"

    def __call__(self, progress: float) -> Metrics:
        """Metrics of the learner's present weights; `progress` as in `Learner.forward`.

        "loss", "token_accuracy" and "samples" as in training; "error": mean absolute error in half action
        ranges; "l1_COMPONENT_UNIT": mean absolute error in SI units of each component of the embodiment.
        A robot without held-out steps is left out.
        """
        with self._undisturbed():
            mine = {number: self._sums(number, batch, progress) for number, batch in self._load()}
        sums: dict[int, torch.Tensor] = {}
        for share in self._ranks.everyone(mine):
            sums |= share
        total = torch.stack([sums[number] for number in range(len(self._batches))]).sum(dim=0)
        found = self._meter.summary(total)
        slots = self._meter.slot_errors(total)
        return {
            name: _without_groups(metrics) | action_errors(self._robots[name], *slots[name])
            for name, metrics in found.items()
        }

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Eval mode, no gradients, random generators of its own."""
        learner, device = self._setting.learner, self._accelerator.device
        learner.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            learner.train()
            for module in learner.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # without a backward pass what was gathered would stay so, and go stale

    def _load(self) -> Iterator[tuple[int, PolicyBatch]]:
        world, rank, count = self._ranks.world, self._ranks.rank, len(self._batches)
        numbers = [(first + rank) % count for first in range(0, count, world)]
        new = [number for number in numbers if number not in self._kept]
        loader = DataLoader(
            Subset(self._batches, new), batch_size=None, num_workers=self._setting.recipe.train.workers,
            collate_fn=_as_is,  # type: ignore[arg-type]
            worker_init_fn=spare_once, generator=torch.Generator(),
        )  # fmt: skip
        for number in numbers:
            if number in self._kept:
                yield number, self._kept[number]
        for number, batch in zip(new, loader, strict=True):
            if self._keeps:
                batch = self._kept[number] = self._summarized(batch)
            yield number, batch

    def _sums(self, number: int, batch: PolicyBatch, progress: float) -> torch.Tensor:
        """What the meter adds up of one batch; the flow head's noise is the same in every validation."""
        batch = batch.to(self._accelerator.device)
        torch.manual_seed(number)
        with self._accelerator.autocast():
            output = self._setting.learner(batch, progress)
        self._meter.reset()
        self._meter.add(output, batch)
        return self._meter.sums.clone()

    def _summarized(self, batch: PolicyBatch) -> PolicyBatch:
        """What a frozen backbone sees in a batch, in place of its images and texts."""
        model, head = self._setting.learner.model, next(iter(self._setting.learner.heads.values()))
        assert isinstance(head, SummaryHead)
        moved = batch.to(self._accelerator.device)
        with self._accelerator.autocast():
            summary = head.summarize(model, moved, look(model, moved, head.ask(model, moved)))
        rows = len(batch)
        return replace(
            batch, summary=summary.cpu(), pixel_values=torch.zeros(rows, 0, 0, 0),
            input_ids=batch.input_ids[:, :0], attention_mask=batch.attention_mask[:, :0],
        )  # fmt: skip


def action_errors(robot: Robot, errors: torch.Tensor, counts: torch.Tensor) -> dict[str, float]:
    """Mean absolute errors: "error" in half action ranges, and of each component in its SI unit.

    Args:
        robot: whose.
        errors: [32] sums of absolute errors in SI units.
        counts: [32] how many numbers they are of.
    """
    half_range = torch.from_numpy(robot.normalizers[0].half_range)
    metrics = {"error": ((errors / half_range).sum() / counts.sum()).item()}
    for key, slots in component_slots(robot.embodiment).items():
        if counts[slots].sum() > 0:
            metrics[key] = (errors[slots].sum() / counts[slots].sum()).item()
    return metrics


def component_slots(embodiment: Embodiment) -> dict[str, list[int]]:
    """Slots of each "l1_COMPONENT_UNIT"; a component of several units (a base: m/s, rad/s) has several."""
    found: dict[str, list[int]] = {}
    for component in embodiment.action:
        for slot in component.slot_indices:
            group = slot_group_of(slot)
            key = f"l1_{component.name}_{group.units[slot - group.start]}".replace("/", "_per_")
            found.setdefault(key, []).append(slot)
    return found


def _without_groups(metrics: dict[str, float]) -> dict[str, float]:
    """Without the errors by slot group: those by component are in their place."""
    return {name: value for name, value in metrics.items() if not name.startswith("l1_")}


def _as_is(batch: PolicyBatch) -> PolicyBatch:
    return batch
