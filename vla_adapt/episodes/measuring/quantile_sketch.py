"""Quantiles of a stream in bounded memory: exact while it is short, then within a rank error that is known.

A deterministic, mergeable relative of Manku, Rajagopalan and Lindsay's sketch (SIGMOD 1998): rows beyond the
exact buffer are kept in levels, where an item of level h stands for 2^h rows of the stream. A level that
holds more than `keep` items is sorted and every other item goes up one level. One such halving moves no rank
by more than 2^h, always in one direction; which half survives is chosen so that the two directions balance,
and their sums are counted. So *every* quantile, for *any* order of rows and of merges, has a rank within
`rank_error` rows of the rank asked for, and

    rank_error <= rows * (2 + log2(rows / keep)) / keep

which for the default `keep` is 0.03 % of ten million rows and 0.06 % of a billion, so the 1 % quantile lies
between the true 0.94 % and 1.06 % quantiles. `rank_error` itself, which is as much a guarantee, is smaller
when rows come in large batches: 0.0065 % of 50 million rows in batches of 131,072. Columns share one
structure and are sketched independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped

EXACT_ROWS = 1_000_000
KEEP_ROWS = 1 << 15


class QuantileSketch:
    """Quantiles of `width` columns of float32 rows.

    Args:
        width: number of columns.
        exact: up to so many rows everything is kept and `quantile` equals numpy's (linear) bit for bit.
        keep: items a level holds beyond that; memory is at most about keep * log2(count / keep) rows.
    """

    def __init__(self, width: int, exact: int = EXACT_ROWS, keep: int = KEEP_ROWS):
        assert keep >= 2, keep
        self.width, self.exact, self.keep = width, exact, keep
        self.count = 0
        self._levels: list[list[Float32[np.ndarray, "W _"]]] = [[]]
        self._over = self._under = 0

    @property
    def is_exact(self) -> bool:
        """Whether every row is still there."""
        return len(self._levels) == 1

    @property
    def rank_error(self) -> int:
        """How many steps an answer's rank may be off, at most; 0 while exact."""
        return max(self._over, self._under)

    def add(self, rows: Float[np.ndarray, "N W"]) -> None:
        """Take rows in; kept as float32."""
        assert rows.shape[1] == self.width, rows.shape
        self.count += len(rows)
        self._levels[0].append(np.ascontiguousarray(rows.T, dtype=np.float32))
        self._settle()

    def merge(self, other: QuantileSketch) -> None:
        """Take in all that `other` (of the same width) has seen, as if after one's own."""
        assert other.width == self.width, (other.width, self.width)
        self.count += other.count
        self._levels += [[] for _ in range(len(other._levels) - len(self._levels))]
        for mine, theirs in zip(self._levels, other._levels, strict=False):
            mine += theirs
        self._over, self._under = self._over + other._over, self._under + other._under
        self._settle()

    def select(self, columns: Sequence[int] | np.ndarray) -> QuantileSketch:
        """The sketch of some of the columns."""
        chosen = QuantileSketch(len(columns), self.exact, self.keep)
        chosen.count, chosen._over, chosen._under = self.count, self._over, self._under
        chosen._levels = [[chunk[columns] for chunk in level] for level in self._levels]
        return chosen

    def column(self, number: int) -> Float32[np.ndarray, " N"]:
        """All values of one column in order of arrival; only while exact."""
        assert self.is_exact, "the rows are no longer there"
        return np.concatenate([chunk[number] for chunk in self._levels[0]])

    def quantile(self, q: float) -> Float64[np.ndarray, " W"]:
        """The q-quantile (0..1) of every column, interpolated linearly between neighboring steps."""
        assert self.count, "no rows"
        if self.is_exact:
            columns = (self.column(i).astype(np.float64) for i in range(self.width))
            return np.array([np.quantile(column, q) for column in columns], np.float64)
        weights = np.concatenate(
            [np.full(chunk.shape[1], 1 << h) for h, level in enumerate(self._levels) for chunk in level]
        )
        return np.array([self._weighted(i, weights, q) for i in range(self.width)], np.float64)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays to store; `from_state` makes the same sketch of them."""
        numbers = [self.width, self.exact, self.keep, self.count, self._over, self._under, len(self._levels)]
        empty = np.zeros((self.width, 0), np.float32)
        levels = {
            f"level{h}": np.concatenate([empty, *level], axis=1) for h, level in enumerate(self._levels)
        }
        return {"numbers": np.array(numbers, np.int64), **levels}

    @classmethod
    def from_state(cls, state: Mapping[str, Shaped[np.ndarray, ...]]) -> QuantileSketch:
        """Of `state`'s arrays.

        Raises:
            KeyError: one is missing.
        """
        width, exact, keep, count, over, under, levels = (int(number) for number in state["numbers"])
        sketch = cls(width, exact, keep)
        sketch.count, sketch._over, sketch._under = count, over, under
        sketch._levels = [[state[f"level{h}"]] for h in range(levels)]
        return sketch

    def _settle(self) -> None:
        """Halve every level that is too full; level 0 only once there are more rows than `exact`."""
        if self.count <= self.exact and self.is_exact:
            return
        h = 0
        while h < len(self._levels):
            if sum(chunk.shape[1] for chunk in self._levels[h]) > self.keep:
                self._halve(h)
            h += 1

    def _halve(self, h: int) -> None:
        items = np.sort(np.concatenate(self._levels[h], axis=1), axis=1)
        paired = items.shape[1] // 2 * 2
        # Keeping the lower of each pair can only raise ranks, keeping the upper can only lower them.
        lower = self._over <= self._under
        if lower:
            self._over += 1 << h
        else:
            self._under += 1 << h
        self._levels[h] = [items[:, paired:].copy()] if paired < items.shape[1] else []
        if h + 1 == len(self._levels):
            self._levels.append([])
        self._levels[h + 1].append(items[:, (0 if lower else 1) : paired : 2].copy())

    def _weighted(self, number: int, weights: np.ndarray, q: float) -> float:
        values = np.concatenate([chunk[number] for level in self._levels for chunk in level])
        order = np.argsort(values, kind="stable")
        values, ends = values[order].astype(np.float64), np.cumsum(weights[order])
        position = q * (self.count - 1)
        first = int(position)
        low, high = (
            values[int(np.searchsorted(ends, rank, side="right"))]
            for rank in (first, min(first + 1, self.count - 1))
        )
        return float(low + (high - low) * (position - first))
