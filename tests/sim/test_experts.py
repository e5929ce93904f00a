import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_adapt.sim.experts import (
    DRIVE_GAIN,
    GRASPS,
    WITHIN_REACH_M,
    above,
    arm_action,
    at_grasp,
    downward,
    make_expert,
    nearest_yaw,
    rotation_error,
)
from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.mobile import is_driving

GRASP = GRASPS["franka_panda"]
STILL = np.zeros(3)


@settings(deadline=None)
@given(st.floats(-3, 3))
def test_downward_points_down_and_closes_along_its_yaw(yaw):
    rotation = downward(yaw)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1])
    np.testing.assert_allclose(rotation[:, 0], [np.cos(yaw), np.sin(yaw), 0])


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-10, 10), st.sampled_from([np.pi / 2, np.pi]))
def test_nearest_yaw_is_equivalent_and_at_most_half_a_period_away(now, yaw, period):
    found = nearest_yaw(downward(now), yaw, period)
    assert abs(found - now) <= period / 2 + 1e-9
    assert (found - yaw) / period == pytest.approx(round((found - yaw) / period), abs=1e-6)


@settings(deadline=None)
@given(st.tuples(*[st.floats(-0.7, 0.7)] * 3), st.integers(0, 100))
def test_rotation_error_turns_now_into_wanted(vector, seed):
    now = Rotation.random(random_state=seed).as_matrix()
    wanted = Rotation.from_rotvec(vector).as_matrix() @ now
    np.testing.assert_allclose(rotation_error(wanted, now), vector, atol=1e-7)


def test_the_funnel_keeps_the_gripper_high_until_it_is_over_the_object():
    assert above(np.array([0.10, 0.0, -0.1]), STILL, GRASP)[2] == pytest.approx(-0.03)
    assert above(np.array([0.0, 0.0, -0.1]), STILL, GRASP)[2] == pytest.approx(-0.1)
    heights = [above(np.array([x, 0.0, -0.1]), STILL, GRASP)[2] for x in np.linspace(0, 0.1, 50)]
    assert np.all(np.diff(heights) >= 0)


def test_a_closing_gripper_tolerates_a_slip_that_an_open_one_does_not():
    slip = np.array([1.5 * GRASP.near_m, 0.0, 0.0])
    assert at_grasp(STILL, STILL, 1.0, GRASP)
    assert not at_grasp(slip, STILL, 1.0, GRASP)
    assert at_grasp(slip, STILL, 0.5, GRASP)
    assert not at_grasp(STILL, np.array([0.0, 0.0, 0.3]), 1.0, GRASP)


def test_arm_actions_are_clipped_and_keep_the_gripper_command():
    action = arm_action(np.array([1.0, -1.0, 0.001]), STILL, -1.0)
    np.testing.assert_allclose(action, [1, -1, 0.05, 0, 0, 0, -1])


@pytest.mark.slow
def test_a_parked_base_is_asked_by_the_same_law_as_a_driving_one_but_too_slowly_to_move():
    pytest.importorskip("robosuite")
    world = make_world("mobile_panda", seed=2)
    expert, driven, parked = make_expert(world), [], []
    try:
        while not world.success():
            error = np.append(world.object_position()[:2] - WITHIN_REACH_M, -world.base_heading())
            action = expert()
            (driven if is_driving(action[7:]) else parked).append((action, error))
            world.step(action)
            assert world.steps < world.max_steps
    finally:
        world.close()
    assert len(driven) > 10
    assert len(parked) > 10
    assert all((action[:6] == 0).all() for action, _ in driven)
    assert all((action[7:] != 0).all() for action, _ in parked)
    for action, error in driven + parked:
        wanted = DRIVE_GAIN * error
        assert (np.sign(action[7:]) == np.sign(wanted)).all()
        assert (np.abs(action[7:]) <= np.abs(wanted) + 1e-9).all()
