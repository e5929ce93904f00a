"""Computed fields against plain geometry."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.episodes.mapping.computed import find_function, planar_steps


def test_planar_steps_lead_from_pose_to_pose() -> None:
    rng = np.random.default_rng(0)
    position, yaw = rng.normal(size=(8, 2)), rng.uniform(-3, 3, size=(8, 1))
    steps = planar_steps(position, yaw)
    for t in range(7):
        c, s = np.cos(yaw[t, 0]), np.sin(yaw[t, 0])
        reached = position[t] + np.array([[c, -s], [s, c]]) @ steps[t, :2]
        np.testing.assert_allclose(reached, position[t + 1], atol=1e-12)
        difference = yaw[t, 0] + steps[t, 2] - yaw[t + 1, 0]
        assert abs(np.sin(difference / 2)) < 1e-12
        assert abs(steps[t, 2]) <= np.pi
    assert (steps[-1] == 0).all()


def test_turning_through_pi_is_a_small_turn() -> None:
    steps = planar_steps(np.zeros((2, 2)), np.array([3.1, -3.1]))
    assert steps[0, 2] == pytest.approx(2 * np.pi - 6.2)


def test_unknown_function() -> None:
    with pytest.raises(ValueError, match=r"unknown function 'planar_step'; did you mean 'planar_steps'\?"):
        find_function("planar_step")
