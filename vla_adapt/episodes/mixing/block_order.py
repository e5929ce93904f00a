"""One epoch in an order that reads mostly in sequence: few blocks of neighboring episodes are open at a time.

Meant for datasets that do not lie on a fast disk. The rows of an epoch are cut into blocks of neighboring
episodes and the blocks are shuffled. Each block is dealt, in random order, into `spread` equal hands; hand c
of the j-th block goes into slot j + c (past the last slot it goes on at the first), and a slot's rows are
shuffled. So every slot mixes `spread` blocks, and from one slot to the next one block leaves and one enters.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
from jaxtyping import Int64

BLOCK_STEPS = 256
_KEPT_SLOTS = 4


class BlockOrder:
    """Pure function position in the epoch -> row, each row once.

    Any stretch of samples not longer than the smallest slot, also one that runs from the last slot into the
    next epoch's first, touches at most `open_blocks` blocks.

    Args:
        ends: [E] end of each episode's rows, ascending; the last is the number of rows.
        open_blocks: at least 2.
        key: integers that select the order, for instance (seed, dataset number, epoch).
        block_steps: rows of a block, about: it holds whole episodes.
    """

    def __init__(
        self,
        ends: Int64[np.ndarray, " E"],
        open_blocks: int,
        key: tuple[int, ...],
        block_steps: int = BLOCK_STEPS,
    ):
        if open_blocks < 2:
            raise ValueError(f"open_blocks {open_blocks}: wanted at least 2")
        self._key, self._spread = key, open_blocks // 2
        starts = np.concatenate([[0], ends[:-1]])
        first = np.unique(starts // block_steps, return_index=True)[1]
        edges = np.unique(np.concatenate([starts[first], ends[-1:]]))
        order = self._rng(-1).permutation(len(edges) - 1)
        self._starts, self._sizes = edges[:-1][order], np.diff(edges)[order]
        self.slot_ends = np.cumsum(self._slot_sizes())
        self._slots: OrderedDict[int, np.ndarray] = OrderedDict()

    def row(self, position: int) -> int:
        """The row at a position of the epoch."""
        slot = int(np.searchsorted(self.slot_ends, position, side="right"))
        start = int(self.slot_ends[slot - 1]) if slot else 0
        return int(self._slot(slot)[position - start])

    def _slot_sizes(self) -> np.ndarray:
        sizes = np.zeros(len(self._sizes), np.int64)
        for hand in range(self._spread):
            low, high = (self._sizes * part // self._spread for part in (hand, hand + 1))
            sizes += np.roll(high - low, hand)
        return sizes

    def _slot(self, slot: int) -> np.ndarray:
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = self._fill(slot)
            if len(self._slots) > _KEPT_SLOTS:
                self._slots.popitem(last=False)
        return found

    def _fill(self, slot: int) -> np.ndarray:
        hands = []
        for hand in range(self._spread):
            block = (slot - hand) % len(self._sizes)
            size = int(self._sizes[block])
            dealt = self._rng(2 * block).permutation(size)
            part = slice(size * hand // self._spread, size * (hand + 1) // self._spread)
            hands.append(self._starts[block] + dealt[part])
        return self._rng(2 * slot + 1).permutation(np.concatenate(hands))

    def _rng(self, what: int) -> np.random.Generator:
        digest = hashlib.sha256(repr((*self._key, what)).encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_slots": OrderedDict()}
