"""Gradient accumulation: one optimizer step from several equal passes, each over a part of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from accelerate import Accelerator
from torch import nn

Window = TypeVar("Window")
Batch = TypeVar("Batch")


def in_micro_batches(
    collate: Callable[[Sequence[Window]], Batch], count: int, windows: Sequence[Window]
) -> list[Batch]:
    """The windows of one process and step as `count` collated batches of equal size, in order."""
    share = len(windows) // count
    assert share * count == len(windows), "checked by `check_split`"
    return [collate(windows[first : first + share]) for first in range(0, len(windows), share)]


def synced_at_last(accelerator: Accelerator, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around forward and backward: gradients are added up over processes in the last pass only."""
    return nullcontext() if last else accelerator.no_sync(module)


def check_split(batch_size: int, world: int, accumulate: int) -> None:
    """Every pass of every process must be over equally many samples: their mean is that of one big batch.

    Raises:
        ValueError: they cannot be.
    """
    if batch_size % world:
        raise ValueError(f"train.batch_size {batch_size} cannot be split over {world} processes evenly")
    if batch_size % (world * accumulate):
        raise ValueError(
            f"train.batch_size {batch_size} cannot be split evenly into train.accumulate {accumulate} passes "
            f"on each of {world} processes; choose an accumulate that divides {batch_size // world}"
        )
