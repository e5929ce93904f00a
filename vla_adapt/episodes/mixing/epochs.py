"""Passes over a dataset whose episodes have weights: how often each is drawn in which pass, in closed form.

In every epoch a step of episode i is drawn a whole number of times: `floor((e + 1) r + u) - floor(e r + u)`
with r the episode's rate and u a fixed random offset. So after any number E of epochs it was drawn E r times,
rounded up or down: an episode of twice the weight is drawn exactly twice as often, and nothing is stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

_KEPT_EPOCHS = 2
# Offsets are multiples of this, so that whole rates stay whole in floating point for billions of epochs.
_GRAIN = 1 << 20


class Place(NamedTuple):
    """Where an occurrence lies: the epoch, the position in it, and the ends of the epoch's rows by episode.

    Row r of the epoch belongs to the first episode whose end is above r.
    """

    epoch: int
    position: int
    ends: Int64[np.ndarray, " E"]


class Epochs:
    """Pure function occurrence -> `Place`.

    Args:
        lengths: steps of each episode.
        weights: of each episode, >= 0, at least one above; None: all alike, every step once an epoch. Only
            ratios matter: rates are scaled so that a mean epoch is as long as the episodes above zero.
        key: integers that select the offsets, for instance (seed, dataset number).
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " E"],
        weights: Float[np.ndarray, " E"] | None,
        key: tuple[int, ...],
    ):
        self.lengths = lengths
        self._ends = np.cumsum(lengths)
        self._rates: np.ndarray | None = None
        self._found: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()
        drawn = lengths if weights is None else np.where(weights > 0, lengths, 0)
        self.steps = int(drawn.sum())
        if weights is not None and self.steps:
            with np.errstate(over="ignore"):
                total = float(weights @ lengths)
            if np.isfinite(total):
                self._rates = weights * (self.steps / total)
            else:
                scaled = weights / weights.max()
                self._rates = scaled * (self.steps / float(scaled @ lengths))
            rng = np.random.Generator(np.random.PCG64([*key, len(lengths)]))
            self._offsets = rng.integers(_GRAIN, size=len(lengths)) / _GRAIN

    def place(self, occurrence: int) -> Place:
        """Where draw number `occurrence` >= 0 of the dataset lies."""
        if self._rates is None:
            return Place(*divmod(occurrence, self.steps), self._ends)
        for epoch, (start, ends) in reversed(self._found.items()):
            if 0 <= occurrence - start < ends[-1]:
                return Place(epoch, occurrence - start, ends)
        epoch = self._search(occurrence)
        start = self._before(epoch)
        copies = self._copies_before(epoch + 1) - self._copies_before(epoch)
        self._found[epoch] = start, np.cumsum(copies * self.lengths)
        if len(self._found) > _KEPT_EPOCHS:
            self._found.popitem(last=False)
        return Place(epoch, occurrence - start, self._found[epoch][1])

    def _copies_before(self, epoch: int) -> np.ndarray:
        assert self._rates is not None
        return np.floor(epoch * self._rates + self._offsets).astype(np.int64)

    def _before(self, epoch: int) -> int:
        """Draws in all epochs before this one."""
        return int(self._copies_before(epoch) @ self.lengths)

    def _search(self, occurrence: int) -> int:
        """The epoch that holds a draw: the last one that starts at or before it."""
        low, high = 0, 1 + occurrence // self.steps
        while self._before(high) <= occurrence:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= occurrence else (low, middle)
        return low

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_found": OrderedDict()}
