"""What statistics need of many vectors, in bounded memory and mergeable: moments, extremes and quantiles.

Vectors whose dataset does not record some slots are kept apart by what they record, so that a slot's numbers
are those of the steps that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from vla_adapt.actions.normalize import Statistics
from vla_adapt.episodes.measuring.quantile_sketch import EXACT_ROWS, KEEP_ROWS, QuantileSketch
from vla_adapt.types import NUM_SLOTS


@dataclass
class Moments:
    """Count, mean and sum of squared deviations, minimum and maximum per column, in float64."""

    count: int
    mean: Float64[np.ndarray, " W"]
    squares: Float64[np.ndarray, " W"]
    low: Float64[np.ndarray, " W"]
    high: Float64[np.ndarray, " W"]

    @classmethod
    def of(cls, rows: Float[np.ndarray, "N W"]) -> Moments:
        """Of at least one row."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0), rows.min(axis=0), rows.max(axis=0))

    def merged(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        delta, share = other.mean - self.mean, other.count / count
        return Moments(
            count,
            self.mean + delta * share,
            self.squares + other.squares + delta**2 * (self.count * share),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def select(self, columns: np.ndarray) -> Moments:
        """Of some columns."""
        parts = (self.mean, self.squares, self.low, self.high)
        return Moments(self.count, *(part[columns] for part in parts))


class _Part:
    """Vectors that record the same slots."""

    def __init__(self, moments: Moments, sketch: QuantileSketch):
        self.moments, self.sketch = moments, sketch

    def merge(self, other: _Part) -> None:
        self.moments = self.moments.merged(other.moments)
        self.sketch.merge(other.sketch)

    def select(self, columns: np.ndarray) -> _Part:
        return _Part(self.moments.select(columns), self.sketch.select(columns))


class VectorSummary:
    """Summary of unified vectors [N, 32].

    Args:
        exact: rows up to which everything is kept, see `QuantileSketch`.
        keep: its memory beyond that.
    """

    def __init__(self, exact: int = EXACT_ROWS, keep: int = KEEP_ROWS):
        self._exact, self._keep = exact, keep
        self._parts: dict[tuple[int, ...], _Part] = {}

    @property
    def count(self) -> int:
        """Vectors seen."""
        return sum(part.moments.count for part in self._parts.values())

    @property
    def recorded(self) -> Bool[np.ndarray, 32]:
        """Slots that some vector seen has."""
        mask = np.zeros(NUM_SLOTS, bool)
        for slots in self._parts:
            mask[list(slots)] = True
        return mask

    def add(self, values: Float[np.ndarray, "N 32"], mask: Bool[np.ndarray, 32]) -> None:
        """Take vectors in; masked slots are not read."""
        slots = np.flatnonzero(mask)
        if not len(values):
            return
        sketch = QuantileSketch(len(slots), self._exact, self._keep)
        sketch.add(values[:, slots])
        self._take(tuple(slots.tolist()), _Part(Moments.of(values[:, slots]), sketch))

    def merge(self, other: VectorSummary) -> None:
        """Take in all that `other` has seen, as if after one's own."""
        for slots, part in other._parts.items():
            self._take(slots, part)

    def statistics(self, mask: Bool[np.ndarray, 32]) -> Statistics:
        """Statistics over those slots of the robot's `mask` that are `recorded`; the others are masked and 0.

        Exactly what `Statistics.from_samples` gives as long as all vectors are still there.
        """
        filled = {name: np.zeros(NUM_SLOTS) for name in ("mean", "std", "min", "max", "q01", "q99")}
        for slots, part in self._by_slots():
            for name, values in _columns(part).items():
                filled[name][slots] = values
        return Statistics(**filled, mask=mask & self.recorded, count=self.count)

    def rank_error(self) -> int:
        """Largest number of steps by which the rank of a quantile may be off."""
        return max((part.sketch.rank_error for _, part in self._by_slots()), default=0)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays to store; `from_state` makes the same summary of them."""
        arrays: dict[str, np.ndarray] = {}
        for number, (slots, part) in enumerate(self._parts.items()):
            moments = part.moments
            arrays[f"{number}/slots"] = np.array(slots, np.int64)
            arrays[f"{number}/count"] = np.array(moments.count)
            arrays[f"{number}/moments"] = np.stack([moments.mean, moments.squares, moments.low, moments.high])
            arrays |= {f"{number}/sketch/{key}": array for key, array in part.sketch.state().items()}
        return arrays

    @classmethod
    def from_state(cls, arrays: Mapping[str, Shaped[np.ndarray, ...]]) -> VectorSummary:
        """Of `state`'s arrays.

        Raises:
            KeyError: one is missing.
        """
        summary = cls()
        for number in range(sum(key.endswith("/slots") for key in arrays)):
            prefix = f"{number}/sketch/"
            state = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
            moments = Moments(int(arrays[f"{number}/count"]), *arrays[f"{number}/moments"])
            slots = tuple(arrays[f"{number}/slots"].tolist())
            summary._parts[slots] = _Part(moments, QuantileSketch.from_state(state))
        return summary

    def _take(self, slots: tuple[int, ...], part: _Part) -> None:
        if slots in self._parts:
            self._parts[slots].merge(part)
            return
        sketch = QuantileSketch(len(slots), self._exact, self._keep)
        sketch.merge(part.sketch)
        self._parts[slots] = _Part(part.moments, sketch)

    def _by_slots(self) -> list[tuple[np.ndarray, _Part]]:
        """Parts of disjoint slots: the only one as it is, several merged slot by slot."""
        if len(self._parts) == 1:
            return [(np.array(slots, np.int64), part) for slots, part in self._parts.items()]
        merged: dict[int, _Part] = {}
        for slots, part in self._parts.items():
            for column, slot in enumerate(slots):
                lone = part.select(np.array([column]))
                if slot in merged:
                    merged[slot].merge(lone)
                else:
                    merged[slot] = lone  # `select` has made it our own
        return [(np.array([slot]), part) for slot, part in sorted(merged.items())]


def _columns(part: _Part) -> dict[str, Float64[np.ndarray, " W"]]:
    """Statistics of each column."""
    moments, sketch = part.moments, part.sketch
    mean, std = moments.mean, np.sqrt(moments.squares / moments.count)
    if sketch.is_exact:
        mean, std = _two_pass(sketch)
    q01, q99 = sketch.quantile(0.01), sketch.quantile(0.99)
    return {"mean": mean, "std": std, "min": moments.low, "max": moments.high, "q01": q01, "q99": q99}


def _two_pass(sketch: QuantileSketch) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of kept rows, summed in the order and way that numpy sums [N, 32]."""
    mean, std = np.zeros(sketch.width), np.zeros(sketch.width)
    for first in range(0, sketch.width, 4):
        columns = range(first, min(first + 4, sketch.width))
        block = np.zeros((sketch.count, 4))  # never one column wide: numpy would sum that one pairwise
        for place, column in enumerate(columns):
            block[:, place] = sketch.column(column)
        mean[first : columns.stop] = block.mean(axis=0)[: len(columns)]
        std[first : columns.stop] = block.std(axis=0)[: len(columns)]
    return mean, std
