import numpy as np
import pytest

from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.mobile import DRIVING_SPEED, is_driving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("robosuite")
    world = make_world("mobile_panda")
    yield world
    world.close()


def drive(world, velocity, arm=0.0, steps=20):
    """How far the base went in its own first frame (m, m, rad), and the gripper in the base frame (m)."""
    world.reset(3)
    (start, rotation), heading, gripper = (
        world.arms[0].base_pose(),
        world.base_heading(),
        world.observe_state()[:3],
    )
    for _ in range(steps):
        world.step(np.concatenate([np.full(6, arm), [-1.0], velocity]))
    move = rotation.T @ (world.arms[0].base_pose()[0] - start)
    turned = world.base_heading() - heading
    return np.array([*move[:2], turned]), world.observe_state()[:3] - gripper


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_base_drives_at_the_commanded_velocity_in_its_own_frame(world, axis):
    velocity = np.zeros(3)
    velocity[axis] = 0.4
    moved, gripper = drive(world, velocity)
    assert moved[axis] == pytest.approx(0.4, rel=0.25)  # m/s or rad/s for one second, less the start
    others = np.delete(moved[:2], axis) if axis < 2 else moved[:2]
    assert np.abs(others).max() < 0.1
    assert np.abs(gripper).max() < 0.05


def test_the_arm_holds_still_while_the_base_drives(world):
    moved, gripper = drive(world, np.array([0.4, 0.0, 0.0]), arm=1.0)
    assert moved[0] > 0.25
    assert np.abs(gripper).max() < 0.05


def test_slower_commands_leave_the_base_parked_and_the_arm_free(world):
    moved, gripper = drive(world, np.full(3, 0.9 * DRIVING_SPEED), arm=0.3, steps=10)
    assert np.abs(moved).max() < 0.01
    assert np.abs(gripper).max() > 0.02


def test_the_camera_rides_on_the_base(world):
    world.reset(3)
    start = world.render()
    seen = []
    for velocity in ([0.4, 0.3, 0.4], [-0.2, 0.4, -0.3]):
        for _ in range(10):
            world.step(np.array([*np.zeros(6), -1.0, *velocity]))
        view = world._view_now("primary")
        lookat = world.arms[0].into_base(np.array(view.lookat_m))
        np.testing.assert_allclose(lookat, world.task.view.lookat_m, atol=1e-6)
        seen.append(world.render())
    assert np.abs(seen[0].astype(int) - start).mean() > 1  # the table moves in the image
    assert np.abs(seen[1].astype(int) - seen[0]).mean() > 1


@pytest.mark.parametrize(("velocity", "obeys"), [(0.9 * DRIVING_SPEED, range(7)), (0.5, range(6, 10))])
def test_either_the_arm_or_the_base_obeys_and_always_the_gripper(world, velocity, obeys):
    action = np.full(10, 0.7)
    action[7:] = [0.0, -velocity, 0.1]
    expected = np.zeros(10)
    expected[list(obeys)] = action[list(obeys)]
    np.testing.assert_array_equal(world.obeyed(action), expected)
    assert is_driving(action[7:]) == (velocity > DRIVING_SPEED)
