"""Wilson intervals against published values and at their edges."""

from __future__ import annotations

import pytest

from vla_adapt.evaluation.interval import overlap, rate_text, wilson


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


def test_overlap_and_text():
    assert overlap((0.1, 0.5), (0.5, 0.9))
    assert not overlap((0.1, 0.4), (0.5, 0.9))
    assert rate_text(17, 20) == "17/20 = 85 % [64, 95]"
