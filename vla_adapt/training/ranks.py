"""The processes of a run, agreeing with each other: results, failures and signals known to all or to none.

Everything here goes through a gloo group of its own: it needs no GPU, and its patience is long, while that of
the collectives within a step is short.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

Made = TypeVar("Made")

# The others wait this long while the main process indexes a large dataset, judges a model or saves.
PATIENCE = timedelta(hours=4)


class Ranks:
    """Collective calls: every process of the run must make the same ones, in the same order."""

    def __init__(self, accelerator: Accelerator, patience: timedelta = PATIENCE) -> None:
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self._group = dist.new_group(backend="gloo", timeout=patience) if self.world > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def everyone(self, value: Made) -> list[Made]:
        """The (small) values of all processes, in the order of ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def attempt(self, action: Callable[[], Made]) -> Made:
        """`action()` on every process, at the same time; its result stays with each.

        Raises:
            ValueError: on all of them, when it failed with a ValueError or an OSError on any.
        """
        made: list[Made] = []
        failure, cause = "", None
        try:
            made.append(action())
        except (ValueError, OSError) as error:
            failure, cause = str(error) or type(error).__name__, error
        failures = self.everyone(failure)
        for rank, text in enumerate(failures):
            if text:
                raise ValueError(text if rank == 0 else f"rank {rank}: {text}") from cause
        return made[0]

    def on_main(self, action: Callable[[], Made]) -> Made:
        """`action()` on the main process; its (small) result is everyone's.

        Raises:
            ValueError: on all of them, when it failed with a ValueError or an OSError.
        """
        return self.everyone(self.attempt(lambda: action() if self.is_main else None))[0]  # type: ignore[return-value]

    def main_first(self, make: Callable[[], Made]) -> Made:
        """`make()` on the main process, then, reading the caches it left, on the others.

        Raises:
            ValueError: on all of them, when it failed with a ValueError or an OSError on any.
        """
        mine = self.attempt(lambda: make() if self.is_main else None)
        others = self.attempt(lambda: None if self.is_main else make())
        return mine if self.is_main else others  # type: ignore[return-value]

    def largest(self, value: int, patience: timedelta) -> int:
        """The largest of the processes' values: one all-reduce of eight bytes."""
        if self._group is None:
            return value
        shared = torch.tensor([value], dtype=torch.int64)
        work = dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        work.wait(patience)
        return int(shared.item())

    def wait(self) -> None:
        """Until all processes are here."""
        self.everyone(None)
