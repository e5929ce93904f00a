"""Wilson intervals against published values and at their edges."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from vla_adapt.evaluation.interval import rate_text, t_interval, wilson


def test_known_values():
    low, high = wilson(17, 20)
    assert (round(low, 3), round(high, 3)) == (0.640, 0.948)
    low, high = wilson(0, 20)
    assert low == 0.0
    assert round(high, 3) == 0.161


def test_symmetry_and_edges():
    low, high = wilson(3, 10)
    mirrored = wilson(7, 10)
    assert low == pytest.approx(1 - mirrored[1])
    assert high == pytest.approx(1 - mirrored[0])
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 5 successes in 4 trials"):
        wilson(5, 4)


def test_text():
    assert rate_text(17, 20) == "17/20 = 85 % [64, 95]"


def test_t_interval():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (round(low, 3), round(high, 3)) == (-0.484, 4.484)  # 2 -+ 4.303 / sqrt(3)
    assert t_interval([0.2, 0.2]) == (0.2, 0.2)
    assert t_interval([0.2]) == (-inf, inf)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_t_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(5.0, 2.0, (2000, 3))
    covered = np.mean([low <= 5.0 <= high for low, high in map(t_interval, draws.tolist())])
    assert abs(covered - 0.95) < 0.015
