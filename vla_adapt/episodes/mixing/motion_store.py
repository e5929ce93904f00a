"""Unified motion of episodes, converted when an episode is first met and read back from an unnamed file.

Converting an episode costs more than decoding an image of it, and a mixture meets an episode again for each
of its steps. The file holds the used slots only (about 50 bytes a step) and belongs to the page cache, not to
the process, so memory stays the same however much data there is; forked workers share it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.windows import UnifiedMotion
from vla_adapt.types import NUM_SLOTS

# Stored before an episode's numbers: whether there is proprio, then both masks.
_HEADER = 4 + 2 * NUM_SLOTS


class MotionStore:
    """What was put is got back bit for bit.

    Args:
        lengths: [E] steps of the episodes of each dataset.
        unifiers: (action, proprio or None) of each dataset: which slots can be other than zero.
    """

    def __init__(
        self,
        lengths: Sequence[Int64[np.ndarray, " E"]],
        unifiers: Sequence[tuple[ActionUnifier, ActionUnifier | None]],
    ):
        self._columns = [
            (np.flatnonzero(action.mask), np.flatnonzero(proprio.mask) if proprio else np.zeros(0, np.intp))
            for action, proprio in unifiers
        ]
        sizes = [
            _HEADER + 4 * each * (len(action) + len(proprio))
            for each, (action, proprio) in zip(lengths, self._columns, strict=True)
        ]
        self._first = np.cumsum([0, *map(len, lengths)])
        self._ends = np.cumsum(np.concatenate(sizes))
        self._open()

    def get(self, dataset: int, episode: int) -> UnifiedMotion | None:
        """The motion of an episode, or None when it was not put yet."""
        row = int(self._first[dataset]) + episode
        if self._file is None or not self._there[row]:
            return None
        end = int(self._ends[row])
        start = int(self._ends[row - 1]) if row else 0
        data = os.pread(self._file.fileno(), end - start, start)
        if len(data) != end - start:
            return None
        masks = np.frombuffer(data, bool, 2 * NUM_SLOTS, 4).reshape(2, NUM_SLOTS)
        numbers = np.frombuffer(data, np.float32, offset=_HEADER)
        columns = self._columns[dataset]
        steps = len(numbers) // (len(columns[0]) + len(columns[1]))
        action = _spread(numbers[: steps * len(columns[0])], steps, columns[0])
        has_proprio = data[0] == 1
        proprio = _spread(numbers[steps * len(columns[0]) :], steps, columns[1]) if has_proprio else None
        return UnifiedMotion(action, masks[0], proprio, masks[1])

    def put(self, dataset: int, episode: int, motion: UnifiedMotion) -> None:
        """Keep the motion of an episode; when the disk is full nothing more is kept."""
        if self._file is None:
            return
        row = int(self._first[dataset]) + episode
        columns = self._columns[dataset]
        proprio = np.zeros_like(motion.action) if motion.proprio is None else motion.proprio
        data = b"".join(
            (
                bytes((motion.proprio is not None, 0, 0, 0)),
                motion.action_mask.tobytes(),
                motion.proprio_mask.tobytes(),
                motion.action[:, columns[0]].tobytes(),
                proprio[:, columns[1]].tobytes(),
            )
        )
        start = int(self._ends[row - 1]) if row else 0
        assert start + len(data) == self._ends[row], f"dataset {dataset} episode {episode} changed its length"
        try:
            if os.pwrite(self._file.fileno(), data, start) == len(data):
                self._there[row] = 1
        except OSError:
            self._file = None

    def _open(self) -> None:
        self._file: BinaryIO | None = None
        self._there = mmap.mmap(-1, max(int(self._first[-1]), 1))
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # type: ignore[assignment] # noqa: SIM115
        except OSError:  # nowhere to write to: every motion is converted anew
            return

    def __getstate__(self) -> dict[str, object]:
        return {"_columns": self._columns, "_first": self._first, "_ends": self._ends}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()


def _spread(numbers: np.ndarray, steps: int, columns: np.ndarray) -> np.ndarray:
    """The used slots [steps, columns] among all [steps, 32]."""
    full = np.zeros((steps, NUM_SLOTS), np.float32)
    full[:, columns] = numbers.reshape(steps, len(columns))
    return full
