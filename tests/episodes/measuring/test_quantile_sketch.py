"""The sketch against sorted data: exact while short, within its stated rank error for any order and merge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.episodes.measuring.quantile_sketch import QuantileSketch

QUANTILES = (0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999, 1.0)
ROWS = 60_000


def nasty() -> dict[str, np.ndarray]:
    """[ROWS] float32 each."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=ROWS)
    return {
        "constant": np.full(ROWS, 0.25),
        "bimodal": np.where(rng.random(ROWS) < 0.5, -1.0, 1.0) + 1e-3 * normal,
        "gripper": (rng.random(ROWS) < 0.3).astype(float),
        "heavy tail": rng.standard_cauchy(ROWS),
        "rising": np.sort(normal),
        "falling": np.sort(normal)[::-1],
        "saw": np.arange(ROWS) % 97.0,
        "mostly zero": np.where(rng.random(ROWS) < 0.995, 0.0, normal),
        "drifting": np.cumsum(normal),
    }


def assert_within(sketch: QuantileSketch, rows: np.ndarray, error: int | None = None) -> None:
    """Every answer lies between the true values `rank_error` ranks below and above the rank asked."""
    error = sketch.rank_error if error is None else error
    ordered = np.sort(rows.astype(np.float32), axis=0).astype(np.float64)
    last = len(rows) - 1
    for q in QUANTILES:
        got = sketch.quantile(q)
        low = ordered[max(math.floor(q * last) - error, 0)]
        high = ordered[min(math.ceil(q * last) + error, last)]
        assert (low <= got).all(), (q, low, got)
        assert (got <= high).all(), (q, got, high)


def stated_bound(rows: int, keep: int) -> float:
    return rows * (2 + math.log2(rows / keep)) / keep


def sketch_of(rows: np.ndarray, exact: int = 0, keep: int = 256, batch: int = 999) -> QuantileSketch:
    sketch = QuantileSketch(rows.shape[1], exact=exact, keep=keep)
    for first in range(0, len(rows), batch):
        sketch.add(rows[first : first + batch])
    return sketch


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_short_streams_are_numpys_to_the_bit(rows: int, width: int, seed: int, q: float) -> None:
    values = np.random.default_rng(seed).standard_cauchy((rows, width)).astype(np.float32)
    sketch = sketch_of(values, exact=rows, keep=16, batch=7)
    assert sketch.is_exact
    assert sketch.rank_error == 0
    np.testing.assert_array_equal(sketch.quantile(q), np.quantile(values.astype(np.float64), q, axis=0))
    one_more = QuantileSketch(width, exact=rows - 1, keep=2)
    one_more.add(values)
    assert one_more.is_exact == (rows <= 2)


@pytest.mark.parametrize("name", nasty())
def test_nasty_streams_stay_within_the_stated_rank_error(name: str) -> None:
    values = nasty()[name]
    rows = np.stack([values, -values], axis=1).astype(np.float32)
    sketch = sketch_of(rows)
    assert 0 < sketch.rank_error <= stated_bound(ROWS, 256)
    assert_within(sketch, rows)
    if name == "constant":
        np.testing.assert_array_equal(sketch.quantile(0.01), rows[0].astype(np.float64))


@pytest.mark.parametrize("shards", [2, 7, 40])
def test_any_sharding_and_merge_order_stays_within_it(shards: int) -> None:
    rng = np.random.default_rng(shards)
    rows = np.stack([nasty()["rising"], nasty()["heavy tail"]], axis=1).astype(np.float32)
    for order in (np.arange(ROWS), rng.permutation(ROWS)):
        parts = [sketch_of(part) for part in np.array_split(rows[order], shards)]
        while len(parts) > 1:  # merge in a random tree
            first, second = sorted(rng.choice(len(parts), 2, replace=False))
            parts[first].merge(parts.pop(second))
        assert parts[0].count == ROWS
        assert parts[0].rank_error <= stated_bound(ROWS, 256)
        assert_within(parts[0], rows)


def test_merging_exact_sketches_is_exact_until_too_long() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    parts = [sketch_of(part, exact=600, keep=64) for part in np.array_split(rows, 4)]
    parts[0].merge(parts[1])
    assert parts[0].is_exact
    np.testing.assert_array_equal(
        parts[0].quantile(0.99), np.quantile(rows[:500].astype(float), 0.99, axis=0)
    )
    parts[0].merge(parts[2])
    assert not parts[0].is_exact
    parts[0].merge(parts[3])
    assert_within(parts[0], rows)
    np.testing.assert_array_equal(
        parts[2].quantile(0.5),
        np.quantile(rows[500:750].astype(float), 0.5, axis=0),
        "a merged one is intact",
    )


def test_memory_is_bounded() -> None:
    sketch = QuantileSketch(2, exact=0, keep=128)
    rng = np.random.default_rng(0)
    for _ in range(400):
        sketch.add(rng.normal(size=(500, 2)).astype(np.float32))
    kept = sum(chunk.shape[1] for level in sketch._levels for chunk in level)
    assert kept <= 128 * (1 + math.log2(200_000 / 128))
    assert sketch.count == 200_000


def test_the_default_sizes_keep_the_promised_accuracy() -> None:
    """Two million steps, past the exact buffer: rank error far under 0.04 %."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2_000_000, 1), np.float32)
    sketch = QuantileSketch(1)
    for part in np.array_split(rows, 16):
        sketch.add(part)
    assert not sketch.is_exact
    assert sketch.rank_error < 0.0004 * len(rows)
    ordered = np.sort(rows[:, 0])
    for q in (0.01, 0.5, 0.99):
        rank = np.searchsorted(ordered, sketch.quantile(q)[0])
        assert abs(rank - q * len(rows)) <= sketch.rank_error + 1


def test_some_columns_and_stored_state_give_the_same_answers() -> None:
    rows = np.stack([nasty()["bimodal"], nasty()["drifting"], nasty()["saw"]], axis=1).astype(np.float32)
    sketch = sketch_of(rows)
    again = QuantileSketch.from_state(sketch.state())
    for q in QUANTILES:
        np.testing.assert_array_equal(again.quantile(q), sketch.quantile(q))
        np.testing.assert_array_equal(sketch.select([2, 0]).quantile(q), sketch.quantile(q)[[2, 0]])
    again.add(rows[:5000])
    sketch.add(rows[:5000])
    np.testing.assert_array_equal(again.quantile(0.3), sketch.quantile(0.3))
    assert again.rank_error == sketch.rank_error
