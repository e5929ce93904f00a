"""A held-out error over that of always predicting the mean: under 1 something was learned."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any


def mean_ratio(row: Mapping[str, Any]) -> float:
    """Of a row of `open_loop.json`; infinite where the mean is exact, as the held-out actions never vary."""
    error, baseline = float(row["error"]), float(row["baseline_error"])
    if baseline > 0:
        return error / baseline
    return inf if error > 0 else 1.0
