"""Intervals of accuracies over episodes: known values and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.invariance.episode_interval import episode_interval, score_interval


def test_wilson_at_known_values():
    low, high = score_interval(17 / 20, 20)
    assert (round(low, 3), round(high, 3)) == (0.640, 0.948)


def test_rows_of_one_episode_that_stand_together_count_once():
    robots = np.repeat([0, 1], 100)
    episodes = [f"e{row // 10}" for row in range(200)]
    whole = np.repeat(np.tile([True, True, True, False], 5), 10)
    accuracy, (low, high) = episode_interval(whole, robots, episodes)
    assert accuracy == pytest.approx(0.75, abs=0.06)
    single = score_interval(accuracy, 20)
    assert high - low == pytest.approx(single[1] - single[0], rel=0.15)


def test_all_right_still_has_a_lower_bound():
    robots = np.repeat([0, 1], 50)
    accuracy, (low, high) = episode_interval(
        np.ones(100, bool), robots, [f"e{row // 10}" for row in range(100)]
    )
    assert (accuracy, high) == (1.0, 1.0)
    assert low == pytest.approx(score_interval(1.0, 10)[0])


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0], ids=["independent", "alike", "very alike"])
def test_covers(spread: float):
    """Rows of an episode share a difficulty; robots have unequal numbers of rows."""
    rng, robots = np.random.default_rng(0), np.repeat([0, 1], (360, 180))
    episode = np.arange(540) // 12
    names = [f"e{number}" for number in episode]
    chance_of_right = 1 / (1 + np.exp(-(rng.normal(size=200_000) * spread + 0.5)))
    covered = 0
    for _ in range(300):
        right = 1 / (1 + np.exp(-(rng.normal(size=45)[episode] * spread + 0.5)))
        _, (low, high) = episode_interval(rng.random(540) < right, robots, names)
        covered += low <= chance_of_right.mean() <= high
    assert 0.91 < covered / 300 <= 0.99
