"""Statistics as LeRobot keeps them: of each feature in each episode, and of the whole dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# Rows a feature's quantiles are taken from; all of them up to this many, then a uniform sample.
_KEPT_ROWS = 100_000
_KEPT_NUMBERS = 1_000_000
# Images looked at per episode, and their longest side then.
SAMPLED_IMAGES = 16
_SAMPLED_SIDE = 64

Summary = dict[str, np.ndarray]


def sampled_steps(length: int) -> list[int]:
    """Steps of an episode whose images are looked at."""
    return np.unique(np.linspace(0, length - 1, min(length, SAMPLED_IMAGES)).round().astype(int)).tolist()


def image_numbers(image: UInt8[np.ndarray, "h w 3"]) -> Float64[np.ndarray, "N 3"]:
    """Pixels of an image in [0, 1], thinned out."""
    thin = max(1, max(image.shape[:2]) // _SAMPLED_SIDE)
    return image[::thin, ::thin].reshape(-1, 3) / 255.0


def summary(values: Shaped[np.ndarray, "T ..."], count: int | None = None) -> Summary:
    """min, max, mean, std, count and quantiles over the first axis, each shaped as one value.

    Args:
        values: of one feature in one episode.
        count: what to state as count; default the length of `values`.
    """
    numbers = values.astype(np.float64)
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(numbers) if count is None else count]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class RunningStatistics:
    """Statistics of one feature over all episodes, in bounded memory.

    Everything but the quantiles is exact. Quantiles are those of a uniform sample of 100,000 rows (fewer of
    wide features), so the share of rows below a stated q01 is off by about 0.0003; exact up to that size.
    """

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._count = self._rows = 0
        self._sample = np.zeros((0, 0), np.float32)
        self._shape: tuple[int, ...] = ()
        self._sums: dict[str, np.ndarray] = {}

    def add(self, values: Shaped[np.ndarray, "T ..."], count: int | None = None) -> None:
        """Add an episode's values; `count` as of `summary`."""
        numbers = values.reshape(len(values), -1).astype(np.float64)
        self._shape = values.shape[1:] or (1,)
        rows, mean = len(numbers), numbers.mean(axis=0)
        spread = ((numbers - mean) ** 2).sum(axis=0)
        low, high = numbers.min(axis=0), numbers.max(axis=0)
        if self._rows:
            old, total = self._sums, self._rows + rows
            spread += old["spread"] + (mean - old["mean"]) ** 2 * self._rows * rows / total
            mean = old["mean"] + (mean - old["mean"]) * rows / total
            low, high = np.minimum(low, old["low"]), np.maximum(high, old["high"])
        self._sums = {"mean": mean, "spread": spread, "low": low, "high": high}
        self._keep(numbers)
        self._rows += rows
        self._count += rows if count is None else count

    def summary(self) -> Summary:
        """As `summary` of everything added."""
        values = {
            "min": self._sums["low"],
            "max": self._sums["high"],
            "mean": self._sums["mean"],
            "std": np.sqrt(self._sums["spread"] / self._rows),
        }
        quantiles = np.quantile(self._sample[: self._rows], list(QUANTILES.values()), axis=0)
        values |= dict(zip(QUANTILES, quantiles, strict=True))
        shaped = {name: value.reshape(self._shape) for name, value in values.items()}
        return {**shaped, "count": np.array([self._count])}

    def _keep(self, numbers: Float64[np.ndarray, "N F"]) -> None:
        """Reservoir sampling: every row so far is in the sample with the same probability."""
        if not self._rows:
            width = numbers.shape[1]
            self._sample = np.empty((min(_KEPT_ROWS, max(1, _KEPT_NUMBERS // width)), width), np.float32)
        room = len(self._sample)
        seen = self._rows + np.arange(len(numbers))
        places = np.where(seen < room, seen, (self._rng.random(len(numbers)) * (seen + 1)).astype(np.int64))
        self._sample[places[places < room]] = numbers[places < room]


def as_image_summary(values: Summary) -> Summary:
    """A summary over pixels [3] in the shape LeRobot keeps it, [3, 1, 1]."""
    return {name: value if name == "count" else value.reshape(3, 1, 1) for name, value in values.items()}


def stats_json(by_feature: Mapping[str, Summary]) -> dict[str, Any]:
    """Content of `stats.json`."""
    return {
        feature: {name: value.tolist() for name, value in values.items()}
        for feature, values in by_feature.items()
    }
