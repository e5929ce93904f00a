"""The action statistics inside an original checkpoint: whose to use, and undoing the normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_adapt.suggest import did_you_mean


def dataset_stats(norm_stats: Mapping[str, Any], unnorm_key: str | None) -> dict[str, Any]:
    """Action statistics of one dataset; None is enough when there is exactly one.

    Raises:
        ValueError: for an unknown key, or None when there are several datasets (or none).
    """
    known = ", ".join(sorted(norm_stats)) or "none"
    if unnorm_key is None and len(norm_stats) == 1:
        return next(iter(norm_stats.values()))["action"]
    if unnorm_key is None:
        raise ValueError(
            f"this model holds statistics of {len(norm_stats)} datasets; pass unnorm_key, one of: {known}"
        )
    if unnorm_key not in norm_stats:
        suggestion = did_you_mean(unnorm_key, norm_stats)
        raise ValueError(f"no statistics for unnorm_key {unnorm_key!r}; {suggestion} Keys there: {known}")
    return norm_stats[unnorm_key]["action"]


def unnormalize(values: Float[np.ndarray, " D"], stats: Mapping[str, Any]) -> Float[np.ndarray, " D"]:
    """[-1, 1] to q01..q99 of a dataset; dimensions masked in the statistics pass unchanged."""
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    mask = np.array(stats.get("mask", np.ones(len(low), dtype=bool)))
    return np.where(mask, 0.5 * (values + 1) * (high - low) + low, values)
