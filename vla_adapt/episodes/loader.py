"""A torch DataLoader over a mixture: global step s of batch B is samples s*B .. (s+1)*B - 1, on any ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vla_adapt.episodes.mixture import Mixture
from vla_adapt.episodes.windows import Window

Collate = Callable[[list[Window]], Any]


class StepBatches(Dataset[Any]):
    """Map-style: item s is this rank's share of global batch s, collated."""

    def __init__(self, mixture: Mixture, global_batch: int, rank: int, world: int, collate: Collate | None):
        if global_batch < 1 or global_batch % world:
            raise ValueError(f"global batch {global_batch} does not divide among {world} processes")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes: wanted 0..{world - 1}")
        self._mixture, self._collate = mixture, collate
        self._batch, self._share, self._rank = global_batch, global_batch // world, rank

    def numbers(self, step: int) -> range:
        """Sample numbers of this rank at a global step."""
        first = step * self._batch + self._rank * self._share
        return range(first, first + self._share)

    def __getitem__(self, step: int) -> Any:
        windows = [self._mixture.window(n) for n in self.numbers(step)]
        return windows if self._collate is None else self._collate(windows)


class _Steps:
    """Global step numbers from `start`, `count` of them or without end."""

    def __init__(self, start: int, count: int | None):
        self._start, self._count = start, count

    def __iter__(self) -> Iterator[int]:
        if self._count is None:
            return itertools.count(self._start)
        return iter(range(self._start, self._start + self._count))

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("an endless loader has no length")
        return self._count


def _as_is(item: Any) -> Any:
    """Left to itself the DataLoader turns every array of an item into a tensor."""
    return item


def make_loader(
    mixture: Mixture,
    global_batch: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    steps: int | None = None,
    num_workers: int = 0,
    collate: Collate | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """Loader giving one item per global step: this rank's windows, or what `collate` makes of them.

    Args:
        mixture: what to draw.
        global_batch: samples per step over all ranks; a multiple of `world`.
        rank: of this process.
        world: number of processes.
        start_step: first global step; resuming is starting where the run stopped.
        steps: how many steps; None: endless.
        num_workers: reading processes; the order is the same for any number.
        collate: list of windows -> batch, run in the worker.
        options: passed on to `DataLoader` (prefetch_factor, multiprocessing_context, ...).
    """
    batches = StepBatches(mixture, global_batch, rank, world, collate)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_Steps(start_step, steps),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_is,
        **options,
    )
