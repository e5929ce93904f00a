"""Draws of one dataset: each step as often as it should be, in either order."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from vla_adapt.episodes.mixing.draw_order import DrawOrder

LENGTHS = np.array([5, 0, 2, 7, 3], np.int64)


@pytest.mark.parametrize("open_blocks", [None, 4])
def test_each_step_once_an_epoch(open_blocks: int | None) -> None:
    order = DrawOrder(LENGTHS, None, (3, 0), open_blocks)
    everything = sorted((i, t) for i, length in enumerate(LENGTHS) for t in range(length))
    epochs = [[order.at(17 * epoch + k) for k in range(17)] for epoch in range(4)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("open_blocks", [None, 4])
def test_weighted_draws_are_exact(open_blocks: int | None) -> None:
    """Weights 2 1 . 0 on 5 2 7 3 steps at weights (2, -, 1, 0, 1): mean over 10 positive steps is 15/10."""
    order = DrawOrder(LENGTHS, np.array([2.0, 1.0, 1.0, 0.0, 1.0]), (3, 0), open_blocks)
    assert order.steps == 10
    counts = Counter(order.at(n) for n in range(30))  # rates 4/3 and 2/3: three epochs are whole
    assert counts == {
        (i, t): times for i, length, times in ((0, 5, 4), (2, 2, 2), (4, 3, 2)) for t in range(length)
    }


@pytest.mark.parametrize("open_blocks", [None, 4])
def test_pure_function(open_blocks: int | None) -> None:
    weights = np.array([0.5, 1.0, 2.0, 1.0, 0.1])
    one, two = (DrawOrder(LENGTHS, weights, (3, 0), open_blocks) for _ in range(2))
    wanted = [one.at(n) for n in range(200)]
    assert [two.at(n) for n in reversed(range(200))] == wanted[::-1]
    assert [pickle.loads(pickle.dumps(one)).at(n) for n in (199, 3)] == [wanted[199], wanted[3]]
    assert [DrawOrder(LENGTHS, weights, (4, 0), open_blocks).at(n) for n in range(200)] != wanted


def test_whole_shuffle_of_a_hundred_million_steps_needs_no_table_of_them() -> None:
    order = DrawOrder(np.full(1_000_000, 100, np.int64), None, (0, 0))
    drawn = {order.at(n) for n in range(1000)}
    assert len(drawn) == 1000
    assert len(pickle.dumps(order)) < 20e6


@pytest.mark.parametrize("open_blocks", [None, 2])
def test_huge_episode_weights_draw_as_small_ones(open_blocks: int | None) -> None:
    lengths, weights = np.array([3, 4, 5]), np.array([1.0, 0.5, 1.0])
    plain = DrawOrder(lengths, weights, (0, 0), open_blocks)
    huge = DrawOrder(lengths, weights * 1.5e308, (0, 0), open_blocks)
    assert [huge.at(n) for n in range(40)] == [plain.at(n) for n in range(40)]
