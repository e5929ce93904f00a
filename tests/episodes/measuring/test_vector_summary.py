"""Merged summaries against the plain computation on all vectors at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_adapt.actions.normalize import Statistics
from vla_adapt.episodes.measuring.vector_summary import Moments, VectorSummary

ALL = np.ones(32, bool)


def mask_of(*slots: int) -> np.ndarray:
    mask = np.zeros(32, bool)
    mask[list(slots)] = True
    return mask


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    """Columns of very different sizes and offsets, float32."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 32)) * 10.0 ** rng.integers(-4, 4, 32) + rng.integers(-50, 50, 32)).astype(
        np.float32
    )


@pytest.mark.parametrize("slots", [(6,), (0, 1), (0, 1, 2, 3, 4, 5, 6), tuple(range(21)), tuple(range(32))])
def test_short_data_gives_the_plain_numbers_to_the_bit(slots: tuple[int, ...]) -> None:
    values, mask = vectors(5003), mask_of(*slots)
    merged = VectorSummary()
    for part in np.array_split(values, 9):
        one = VectorSummary()
        one.add(part, mask)
        merged.merge(one)
    assert merged.statistics(mask) == Statistics.from_samples(values, mask)


def test_long_data_gives_the_same_mean_and_deviation_and_close_quantiles() -> None:
    values = vectors(40_000)
    rng = np.random.default_rng(1)
    results = []
    for order in (np.arange(40_000), rng.permutation(40_000)):
        merged = VectorSummary(exact=1000, keep=512)
        for part in np.array_split(values[order], 13):
            one = VectorSummary(exact=1000, keep=512)
            one.add(part, ALL)
            merged.merge(one)
        results.append(merged)
    wanted = Statistics.from_samples(values, ALL)
    for merged in results:
        got = merged.statistics(ALL)
        assert got.count == 40_000
        np.testing.assert_allclose(got.mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(got.std, wanted.std, rtol=1e-11)
        np.testing.assert_array_equal(got.min, wanted.min)
        np.testing.assert_array_equal(got.max, wanted.max)
        error = merged.rank_error() + 1
        assert error < 0.01 * 40_000
        ordered = np.sort(values, axis=0)
        for q, name in ((0.01, "q01"), (0.99, "q99")):
            rank = int(q * 39_999)
            assert (ordered[max(rank - error, 0)] <= getattr(got, name)).all()
            assert (getattr(got, name) <= ordered[min(rank + 1 + error, 39_999)]).all()


def test_moments_survive_a_large_offset() -> None:
    """The textbook E[x^2] - E[x]^2 loses everything here."""
    rows = np.random.default_rng(0).normal(size=(30_000, 2)) + 1e9
    merged = Moments.of(rows[:7])
    for part in np.array_split(rows[7:], 50):
        merged = merged.merged(Moments.of(part))
    np.testing.assert_allclose(np.sqrt(merged.squares / merged.count), rows.std(axis=0), rtol=1e-6)
    exact = [math.fsum(column) / len(rows) for column in rows.T]
    np.testing.assert_allclose(merged.mean, exact, rtol=1e-14)


def test_a_slot_counts_only_the_steps_that_record_it() -> None:
    """One dataset has arm and gripper, the other the arm alone: its zeros must not pull the gripper."""
    both, arm = vectors(300, 1), vectors(500, 2)
    summary = VectorSummary()
    summary.add(both, mask_of(0, 1, 6))
    summary.add(np.where(mask_of(0, 1), arm, 0).astype(np.float32), mask_of(0, 1))
    got = summary.statistics(mask_of(0, 1, 6, 9))
    assert got.count == 800
    together = np.concatenate([both, arm])[:, :2].astype(np.float64)
    np.testing.assert_allclose(got.mean[:2], together.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(got.q01[:2], np.quantile(together, 0.01, axis=0))
    gripper = both[:, 6].astype(np.float64)
    np.testing.assert_allclose(
        [got.mean[6], got.std[6], got.min[6], got.q99[6]],
        [gripper.mean(), gripper.std(), gripper.min(), np.quantile(gripper, 0.99)],
        rtol=1e-12,
    )
    assert got.std[9] == got.max[9] == 0, "nobody records it"
    np.testing.assert_array_equal(np.flatnonzero(got.mask), [0, 1, 6])


def test_one_summary_may_be_merged_again_and_again() -> None:
    one, merged = VectorSummary(), VectorSummary()
    values = vectors(10)
    one.add(values, ALL)
    for _ in range(3):
        merged.merge(one)
    assert merged.count == 30
    assert one.count == 10
    assert one.statistics(ALL) == Statistics.from_samples(values, ALL)


def test_stored_state_gives_the_same() -> None:
    summary = VectorSummary(exact=100, keep=64)
    summary.add(vectors(5000), mask_of(0, 1, 2))
    summary.add(vectors(70, 3), mask_of(0, 6))
    again = VectorSummary.from_state(summary.state())
    mask = mask_of(0, 1, 2, 6)
    assert again.statistics(mask) == summary.statistics(mask)
    assert again.count == summary.count == 5070
