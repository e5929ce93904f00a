"""Confidence intervals: of success rates, and of means over a few runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
from scipy.stats import t as student

from vla_adapt.invariance.episode_interval import Z_95, score_interval


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson, 1927); 95 % with the default z.

    Returns:
        Lower and upper bound, both in [0, 1]. With no trials the interval is all of it.

    Raises:
        ValueError: successes outside 0..trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"got {successes} successes in {trials} trials; wanted 0 <= successes <= trials")
    if trials == 0:
        return 0.0, 1.0
    return score_interval(successes / trials, trials, z)


def rate_text(successes: int, trials: int) -> str:
    """`17/20 = 85 % [64, 95]`: a rate never without its interval."""
    low, high = wilson(successes, trials)
    rate = 100 * successes / trials if trials else float("nan")
    return f"{successes}/{trials} = {rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent runs (seeds); unbounded for fewer than two.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("got no values, wanted those of one run at least")
    mean = float(np.mean(values))
    if len(values) < 2:
        return -inf, inf
    spread = float(np.std(values, ddof=1)) / sqrt(len(values))
    reach = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    return mean - reach, mean + reach
