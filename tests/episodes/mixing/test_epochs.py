"""Weighted passes: exact counts, in closed form, from any place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.episodes.mixing.epochs import Epochs

LENGTHS = np.array([5, 2, 7, 3, 0, 4], np.int64)


def rows(epochs: Epochs, draws: int) -> list[tuple[int, int]]:
    """(epoch, episode) of each draw."""
    places = [epochs.place(n) for n in range(draws)]
    return [(place.epoch, int(np.searchsorted(place.ends, place.position, side="right"))) for place in places]


def test_without_weights_every_step_once_an_epoch() -> None:
    epochs = Epochs(LENGTHS, None, (1, 2))
    assert epochs.steps == 21
    place = epochs.place(50)
    assert (place.epoch, place.position) == (2, 8)
    assert place.ends.tolist() == [5, 7, 14, 17, 17, 21]


def test_weights_are_exact_over_whole_cycles() -> None:
    """Weights 1, 2, 0, 1, 1, 0: the mean over 12 positive steps is 12/10 so rates are 10/12 of them."""
    weights = np.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    epochs = Epochs(LENGTHS, weights, (1, 2))
    assert epochs.steps == 10
    # Rates 5/6 and 5/3: after 6 epochs every step was drawn 5 times, those of weight 2 ten times.
    counts = Counter(episode for _, episode in rows(epochs, 6 * 10))
    assert counts == {0: 5 * 5, 1: 2 * 10, 3: 3 * 5}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_counts_are_within_one_of_the_weights_after_every_epoch(
    episodes: list[tuple[int, float]], seed: int
) -> None:
    lengths = np.array([length for length, _ in episodes], np.int64)
    weights = np.array([weight for _, weight in episodes])
    if not (weights * lengths > 1e-3).any():
        return
    epochs = Epochs(lengths, weights, (seed, 0))
    drawn = rows(epochs, 6 * epochs.steps)
    positive = lengths[weights > 0].sum()
    rates = weights * positive / (weights * lengths).sum()
    counts = np.zeros(len(lengths), np.int64)
    for epoch in range(drawn[-1][0]):  # the last one is cut off
        mine = Counter(episode for e, episode in drawn if e == epoch)
        for episode, count in mine.items():
            assert count % lengths[episode] == 0, "all steps of an episode equally often"
            counts[episode] += count // lengths[episode]
        expected = (epoch + 1) * rates
        assert (np.abs(counts - expected)[lengths > 0] < 1 + 1e-6).all()


def test_any_order_of_asking_gives_the_same() -> None:
    weights = np.array([0.3, 1.7, 0.0, 2.5, 1.0, 0.01])
    forward, backward = Epochs(LENGTHS, weights, (7, 1)), Epochs(LENGTHS, weights, (7, 1))
    numbers = list(range(300))
    wanted = [forward.place(n)[:2] for n in numbers]
    assert [backward.place(n)[:2] for n in reversed(numbers)] == wanted[::-1]
    assert wanted == sorted(wanted), "epochs follow each other"
    epochs = [epoch for epoch, _ in wanted]
    for epoch in set(epochs[:-20]):
        positions = [position for e, position in wanted if e == epoch]
        assert positions == list(range(len(positions))), "no draw is left out"


def test_far_away_and_equal_weights() -> None:
    epochs = Epochs(LENGTHS, np.full(6, 0.4), (0, 0))
    for n in (0, 20, 21, 10**12):
        assert epochs.place(n)[:2] == divmod(n, 21)
    lone = Epochs(np.array([4, 4], np.int64), np.array([1.0, 1e-9]), (0, 0))
    assert lone.place(10**10).epoch == pytest.approx(10**10 / 8, rel=1e-6)
