"""In which order the steps of one dataset are drawn: a pure function of how many were drawn before."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

import numpy as np
from jaxtyping import Float, Int64

from vla_adapt.episodes.mixing.block_order import BlockOrder
from vla_adapt.episodes.mixing.epochs import Epochs
from vla_adapt.episodes.mixing.permutation import permuted

_KEPT_ORDERS = 2


class DrawOrder:
    """Occurrence number -> (episode, step). Memory grows with episodes, not with steps.

    Args:
        lengths: steps of each episode.
        weights: of each episode, see `epochs.Epochs`; None: every step once an epoch.
        key: (seed, dataset number).
        open_blocks: None: each epoch is a permutation of all its rows; a number: it reads mostly in
            sequence, see `block_order.BlockOrder`.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " E"],
        weights: Float[np.ndarray, " E"] | None,
        key: tuple[int, int],
        open_blocks: int | None = None,
    ):
        self._lengths, self._key, self._open_blocks = lengths, key, open_blocks
        self._epochs = Epochs(lengths, weights, key)
        self._orders: OrderedDict[int, BlockOrder] = OrderedDict()

    @property
    def steps(self) -> int:
        """Draws in an epoch; with episode weights in a mean one."""
        return self._epochs.steps

    def at(self, occurrence: int) -> tuple[int, int]:
        """Episode and step of draw number `occurrence` >= 0."""
        epoch, position, ends = self._epochs.place(occurrence)
        plain = ends.data  # its elements are plain integers, got at a third of an array's time
        if self._open_blocks is None:
            row = permuted(position, plain[-1], (*self._key, epoch))
        else:
            row = self._order(epoch, ends, self._open_blocks).row(position)
        episode = bisect_right(plain, row)
        start = plain[episode - 1] if episode else 0
        return episode, (row - start) % int(self._lengths[episode])

    def _order(self, epoch: int, ends: np.ndarray, open_blocks: int) -> BlockOrder:
        found = self._orders.get(epoch)
        if found is None:
            found = self._orders[epoch] = BlockOrder(ends, open_blocks, (*self._key, epoch))
            if len(self._orders) > _KEPT_ORDERS:
                self._orders.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_orders": OrderedDict()}
