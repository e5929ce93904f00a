"""Which dataset each sample number belongs to, by weight, in closed form.

Sample numbers are cut into periods. In every period each dataset gets a fixed number of slots (its weight,
rounded by largest remainder); the slots are spread evenly and shuffled locally, so that every short stretch
holds close to the wanted shares and no stretch has a pattern.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERIOD = 1 << 16
_BLOCK = 64
_KEPT_PERIODS = 4


class Turn(NamedTuple):
    """Dataset number, and how many samples that dataset had before this one."""

    dataset: int
    occurrence: int


class _Period(NamedTuple):
    """Of each slot; as views whose elements are plain integers, got at a third of an array's time."""

    dataset: memoryview[int]
    rank: memoryview[int]


class Interleave:
    """Pure function n -> `Turn`.

    Args:
        weights: one positive number per dataset; only ratios matter. A share is rounded to 1 / period.
        seed: of the order.
        period: slots per period.
    """

    def __init__(self, weights: Sequence[float | int], seed: int, period: int = PERIOD):
        shares = np.asarray(weights, np.float64)
        if shares.ndim != 1 or not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
            raise ValueError(f"mixture weights {list(weights)}: wanted a positive finite number per dataset")
        with np.errstate(over="ignore"):
            if not np.isfinite(shares.sum()):
                shares = shares / shares.max()
        self.period = period
        self.counts = _apportion(shares / shares.sum(), period)
        self._seed = seed
        self._periods: OrderedDict[int, _Period] = OrderedDict()

    def turn(self, n: int) -> Turn:
        """Dataset and occurrence of sample number `n` >= 0."""
        number, slot = divmod(n, self.period)
        owners, ranks = self._period(number)
        dataset = owners[slot]
        return Turn(dataset, number * int(self.counts[dataset]) + ranks[slot])

    def _period(self, number: int) -> _Period:
        found = self._periods.get(number)
        if found is None:
            found = self._periods[number] = self._arrange(number)
            if len(self._periods) > _KEPT_PERIODS:
                self._periods.popitem(last=False)
        return found

    def _arrange(self, number: int) -> _Period:
        rng = np.random.Generator(np.random.PCG64([self._seed, number]))
        times = [(np.arange(count) + rng.random()) / count for count in self.counts]
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        even = owners[np.argsort(np.concatenate(times), kind="stable")]
        block = np.arange(self.period) // _BLOCK
        dataset = even[np.lexsort((rng.random(self.period), block))].astype(np.int32)
        rank = np.empty(self.period, np.int32)
        for i, count in enumerate(self.counts):
            rank[dataset == i] = np.arange(count)
        return _Period(dataset.data, rank.data)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_periods": OrderedDict()}


def _apportion(shares: np.ndarray, period: int) -> np.ndarray:
    """Integer slots per dataset summing to `period`, by largest remainder, at least one each."""
    if len(shares) > period:
        raise ValueError(f"{len(shares)} datasets do not fit into a period of {period} samples")
    ideal = shares * period
    counts = np.maximum(np.floor(ideal), 1).astype(np.int64)
    while counts.sum() < period:
        counts[np.argmax(ideal - counts)] += 1
    while counts.sum() > period:
        counts[np.argmax(np.where(counts > 1, counts - ideal, -np.inf))] -= 1
    return counts
