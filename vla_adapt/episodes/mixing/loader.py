"""A torch DataLoader over a mixture: global step s of batch B is samples s*B .. (s+1)*B - 1, on any ranks.

Its `state_dict` is the number of the next sample and nothing else: the same on all ranks, for any number of
workers, however far they have read ahead.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from vla_adapt.episodes.mixing.batch_parcel import Parcel, pack, unpack
from vla_adapt.episodes.mixing.frame_blocks import BlockPool, frames_into
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.stack_windows import stack_windows
from vla_adapt.episodes.mixing.worker_queue import PipeContext, forks
from vla_adapt.episodes.windows import Window

Collate = Callable[[list[Window]], Any]

# Address space for a frame and what is made of it; only what is filled takes memory.
BYTES_PER_FRAME = 4 << 20
# Batches the consumer may hold, beside those read ahead, before new ones need memory of their own.
HELD_BATCHES = 3


class StepBatches(Dataset[Any]):
    """Map-style: item s is this rank's share of global batch s, collated."""

    def __init__(self, mixture: Mixture, global_batch: int, rank: int, world: int, collate: Collate | None):
        if global_batch < 1 or global_batch % world:
            raise ValueError(f"global batch {global_batch} does not divide among {world} processes")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes: wanted 0..{world - 1}")
        self.mixture, self.global_batch, self._collate = mixture, global_batch, collate
        self._share, self._rank = global_batch // world, rank
        self._pool: BlockPool | None = None

    def numbers(self, step: int) -> range:
        """Sample numbers of this rank at a global step."""
        first = step * self.global_batch + self._rank * self._share
        return range(first, first + self._share)

    def set_up_blocks(self, workers: int, ahead: int) -> BlockPool | None:
        """Make a new pool of blocks for batches, `ahead` of them per worker; None: no room for it."""
        frames = len(self.mixture.cameras) + len(self.mixture.optional_cameras)
        size = self._share * frames * self.mixture.history * BYTES_PER_FRAME
        try:
            self._pool = BlockPool(max(workers, 1), ahead, size)
        except OSError:
            self._pool = None
        return self._pool

    def __getitem__(self, step: int) -> Any:
        worker, pool = get_worker_info(), self._pool
        block = pool.take(worker.id if worker else 0) if pool else None
        for soon in (step, step + (worker.num_workers if worker else 1)):
            self.mixture.prefetch(self.numbers(soon))
        with frames_into(block):
            batch = self._batch(self.numbers(step))
        if worker is None or pool is None or block is None:
            return batch
        parcel = pack(batch, block)
        pool.give(block.number)
        return parcel

    def _batch(self, numbers: range) -> Any:
        if self._collate is stack_windows:
            return self.mixture.stacked(numbers)
        windows = self.mixture.windows(numbers)
        return windows if self._collate is None else self._collate(windows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pool": None}


class _Steps:
    """Global step numbers from `start` up to, without, `end`, or without end."""

    def __init__(self, start: int, end: int | None):
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start) if self.end is None else iter(range(self.start, self.end))

    def __len__(self) -> int:
        if self.end is None:
            raise TypeError("an endless loader has no length")
        return max(self.end - self.start, 0)


class MixtureLoader(DataLoader[Any]):
    """A DataLoader that can say and be told where it stands, as torchdata's StatefulDataLoader does.

    Every `iter()` begins where the loader was made, or last told, to begin.
    """

    def __init__(self, batches: StepBatches, steps: _Steps, **options: Any):
        options["worker_init_fn"] = partial(_start_worker, options.get("worker_init_fn"))
        sends_blocks = not options.get("persistent_workers") and not options.get("pin_memory")
        if options.get("num_workers") and sends_blocks and forks():
            options.setdefault("multiprocessing_context", PipeContext())
        super().__init__(batches, batch_size=None, sampler=steps, collate_fn=_as_is, **options)  # type: ignore[arg-type]
        self._batches, self._steps = batches, steps
        self._given = steps.start

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._given = self._steps.start
        pool = self._set_up_blocks()

        def opened(item: Any) -> Any:
            self._given += 1
            if not isinstance(item, Parcel):
                return item
            assert pool is not None, "a worker packed a batch without a pool"
            return unpack(item, pool.receive(item.block))

        # Not a loop: its variable would hold the last batch, and its memory, while the next one is made.
        yield from map(opened, super().__iter__())

    def _set_up_blocks(self) -> BlockPool | None:
        """Blocks for one pass. A pass that is given up leaves some taken, so workers that stay need others'
        transport, as do batches that DataLoader pins before they are unpacked."""
        if self.num_workers and (self.persistent_workers or self.pin_memory):
            return None
        return self._batches.set_up_blocks(self.num_workers, (self.prefetch_factor or 0) + HELD_BATCHES)

    def state_dict(self) -> dict[str, Any]:
        """The number of the first sample not yet given out by the latest `iter()`, and of which mixture."""
        return {
            "sample": self._given * self._batches.global_batch,
            "mixture": self._batches.mixture.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next `iter()` begin where `state` was taken; the last step stays what it was.

        Raises:
            ValueError: the state is of a mixture that draws other samples, or lies within a batch.
        """
        if state["mixture"] != self._batches.mixture.fingerprint():
            raise ValueError(
                "this loader's mixture draws other samples than the one its state was saved from: datasets, "
                "episodes, weights or seed have changed; restore them, or start anew"
            )
        step, within = divmod(int(state["sample"]), self._batches.global_batch)
        if within:
            raise ValueError(
                f"state at sample {state['sample']} is no whole number of batches of "
                f"{self._batches.global_batch}; resume with the batch size it was saved with"
            )
        self._steps.start = self._given = step


def _start_worker(then: Callable[[int], None] | None, number: int) -> None:
    """A garbage collection writes to all objects there are, and so would copy the trainer's memory."""
    gc.freeze()
    if then is not None:
        then(number)


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
) -> MixtureLoader:
    """Loader giving one item per global step: this rank's windows, or what `collate` makes of them.

    Args:
        mixture: what to draw.
        global_batch: samples per step over all ranks; a multiple of `world`.
        rank: of this process.
        world: number of processes.
        start_step: first global step.
        steps: how many steps; None: endless.
        num_workers: reading processes; the order is the same for any number.
        collate: list of windows -> batch, run in the worker; `stack_windows` makes tensors, fastest.
        options: passed on to `DataLoader` (prefetch_factor, multiprocessing_context, ...).
    """
    batches = StepBatches(mixture, global_batch, rank, world, collate)
    until = None if steps is None else start_step + steps
    return MixtureLoader(batches, _Steps(start_step, until), num_workers=num_workers, **options)
