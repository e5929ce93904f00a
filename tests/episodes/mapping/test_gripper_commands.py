"""Gripper numbers to openings, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_adapt.episodes.mapping.gripper_commands import absolute_opening, binarized, opening_of


def test_opening_is_linear_and_clipped() -> None:
    numbers = np.array([0.0, 0.02, 0.04, 0.1, -1.0])
    np.testing.assert_allclose(opening_of(numbers, 0.04, 0.0), [0, 0.5, 1, 1, 0])
    np.testing.assert_allclose(opening_of(numbers, -1.0, 1.0), [0.5, 0.49, 0.48, 0.45, 1.0])


def followed(commands: list[float]) -> list[float]:
    """Open X-Embodiment's rule as a plain loop: -1 opens, +1 closes."""
    signs = [1 if c < -0.1 else -1 if c > 0.1 else 0 for c in commands]
    state = -next((sign for sign in signs if sign), -1)
    out = []
    for sign in signs:
        state = sign or state
        out.append(state / 2 + 0.5)
    return out


@given(st.lists(st.sampled_from([-1.0, -0.2, -0.05, 0.0, 0.05, 0.2, 1.0]), min_size=1, max_size=12))
def test_relative_commands_are_followed(commands: list[float]) -> None:
    got = absolute_opening(np.array(commands), is_open=-1.0, is_closed=1.0, threshold=0.1)
    np.testing.assert_array_equal(got, followed(commands))
    turned = absolute_opening(-np.array(commands), is_open=1.0, is_closed=-1.0, threshold=0.1)
    np.testing.assert_array_equal(turned, got)


@pytest.mark.parametrize(("commands", "wanted"), [([0, 0], [1, 1]), ([0, 1], [1, 0]), ([0, -1], [0, 1])])
def test_before_the_first_command_the_gripper_is_in_the_other_state(commands, wanted) -> None:
    got = absolute_opening(np.array(commands, float), is_open=-1.0, is_closed=1.0, threshold=0.1)
    assert got.tolist() == wanted


def test_an_undecided_end_keeps_its_last_number() -> None:
    assert binarized(np.array([0.3, 0.99, 0.5, 0.6])).tolist() == [1.0, 1.0, 0.6, 0.6]
