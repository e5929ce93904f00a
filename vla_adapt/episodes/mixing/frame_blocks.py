"""Memory that the frames of a batch are decoded into, used again once nothing refers to it.

Fresh memory for every batch costs a page fault for each 4 KiB, and a copy more to get to another process.
"""

from __future__ import annotations

import mmap
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

# Everything in a block starts this far from a multiple of 64: rows that start at a multiple of 32 are written
# past the caches by libjpeg-turbo, and decoding takes 7 % longer.
FIRST, _APART = 16, 64
# MAP_NORESERVE, so that untouched pages count nowhere, where they otherwise would.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class Block:
    """One block, filled from its start.

    Attributes:
        number: of the block in its pool.
        memory: all of it; whatever is made from it keeps the block from being taken again.
        used: bytes filled, or not to be.
        frames: where each decoded frame starts, and the frame, in order.
    """

    def __init__(self, number: int, memory: memoryview):
        self.number, self.memory, self.used = number, memory, FIRST
        self.frames: list[tuple[int, np.ndarray]] = []

    def room(self) -> memoryview:
        """What is not filled yet."""
        return self.memory[self.used :]

    def keep(self, frame: np.ndarray) -> None:
        """Count the room as filled by `frame`, which was decoded to its start."""
        self.frames.append((self.fill(frame.nbytes), frame))

    def fill(self, size: int) -> int:
        """Count the first `size` bytes of the room as filled; where they start."""
        start = self.used
        self.used = min(len(self.memory), start + -(-size // _APART) * _APART)
        return start


class BlockPool:
    """`owners` times `count` blocks of `size` bytes of anonymous memory, shared with forked processes.

    Each owner, one process or thread, takes blocks of its own number only. Memory is used as far as blocks
    were ever filled, not by their size.

    Raises:
        OSError: so much address space is not to be had.
    """

    def __init__(self, owners: int, count: int, size: int):
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._memory = mmap.mmap(-1, owners * count * size, flags=flags)
        self._count, self._size = count, size
        # 1: another process was given the block and still has it.
        self._given = mmap.mmap(-1, owners * count)
        self._taken: dict[int, weakref.ref[np.ndarray]] = {}
        self._received: dict[int, weakref.ref[np.ndarray]] = {}

    def take(self, owner: int) -> Block | None:
        """A block that nothing refers to, or None: all are in use."""
        for number in range(owner * self._count, (owner + 1) * self._count):
            taken = self._taken.get(number)
            if not self._given[number] and (taken is None or taken() is None):
                array = self._array(number)
                self._taken[number] = weakref.ref(array)
                return Block(number, array.data)
        return None

    def give(self, number: int) -> None:
        """Leave a block to the process that calls `receive`, until nothing there refers to it."""
        self._given[number] = 1

    def receive(self, number: int) -> memoryview:
        """The memory of a block that another process gave."""
        array = self._array(number)
        self._received[number] = weakref.ref(array, partial(self._give_back, number))
        return array.data

    def _give_back(self, number: int, _: object) -> None:
        self._given[number] = 0

    def _array(self, number: int) -> np.ndarray:
        return np.frombuffer(self._memory, np.uint8, self._size, number * self._size)


class _Current(threading.local):
    block: Block | None = None


_CURRENT = _Current()


@contextmanager
def frames_into(block: Block | None) -> Iterator[None]:
    """Within it, `image_codec` decodes JPEGs of this thread into `block` while it has room."""
    before, _CURRENT.block = _CURRENT.block, block
    try:
        yield
    finally:
        _CURRENT.block = before


def current_block() -> Block | None:
    """The block that this thread's frames go into."""
    return _CURRENT.block
