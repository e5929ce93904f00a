"""Which dataset comes when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.episodes.mixing.interleave import Interleave

WEIGHTS = st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(WEIGHTS, st.integers(0, 10**6))
def test_shares_hold_on_every_stretch(weights: list[float], seed: int) -> None:
    interleave = Interleave(weights, seed, period=1024)
    shares = np.array(weights) / sum(weights)
    assert interleave.counts.sum() == 1024
    assert (np.abs(interleave.counts - shares * 1024) <= max(1, len(weights))).all()
    turns = [interleave.turn(n) for n in range(3 * 1024)]
    drawn = np.array([[turn.dataset == i for i in range(len(weights))] for turn in turns]).cumsum(axis=0)
    expected = np.arange(1, len(turns) + 1)[:, None] * (interleave.counts / 1024)
    error = np.abs(drawn - expected)
    assert error[63::64].max() <= 1 + len(weights)
    assert error.max() <= 33 + len(weights)
    assert (drawn[1023::1024] == np.outer([1, 2, 3], interleave.counts)).all()


@settings(max_examples=20, deadline=None)
@given(WEIGHTS, st.integers(0, 10**6))
def test_occurrences_count_up_without_gaps(weights: list[float], seed: int) -> None:
    interleave = Interleave(weights, seed, period=1024)
    seen: dict[int, int] = {}
    for n in range(2500):
        turn = interleave.turn(n)
        assert turn.occurrence == seen.get(turn.dataset, 0)
        seen[turn.dataset] = turn.occurrence + 1


def test_pure_function_of_n() -> None:
    a, b = Interleave([1, 2, 3], 5, period=256), Interleave([1, 2, 3], 5, period=256)
    forward = [a.turn(n) for n in range(3000)]
    backward = [b.turn(n) for n in reversed(range(3000))][::-1]
    assert forward == backward
    assert forward != [Interleave([1, 2, 3], 6, period=256).turn(n) for n in range(3000)]


def test_no_fixed_pattern_within_a_batch() -> None:
    interleave = Interleave([1, 1], 0)
    firsts = {interleave.turn(n).dataset for n in range(0, 640, 64)}
    assert firsts == {0, 1}


def test_a_tiny_weight_still_gets_its_turn() -> None:
    assert Interleave([1.0, 1e-9], 0, period=128).counts.tolist() == [127, 1]


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("nan")], [float("inf")]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="wanted a positive finite number per dataset"):
        Interleave(weights, 0)


def test_huge_weights_keep_their_shares() -> None:
    assert Interleave([1e308, 1e308, 1.0], 0, period=1024).counts.tolist() == [511, 512, 1]
    assert Interleave([1.5e308, 0.5e308], 0, period=1024).counts.tolist() == [768, 256]
