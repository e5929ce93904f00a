"""Joined actions have the effect of the single ones, worked out step by step with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mapping.joined_actions import ActionJoiner

ARM = """
name: arm
title: An arm
rate_hz: 10
action:
  - {{name: place, slots: right_ee_position_delta, unit: normalized, scale: [1, 2, 0.5], frame: {position}}}
  - {{name: rotation, slots: right_ee_rotation_delta, rotation: {rotation}, frame: {turn}{unit}}}
  - {{name: gripper, slots: right_gripper, gripper: {{open: 5, closed: 1}}}}
cameras: {{primary: {{}}}}
"""
SCALE = np.array([1, 2, 0.5])


def arm(position: str = "base", turn: str = "base", rotation: str = "euler_xyz") -> Embodiment:
    unit = "" if "quaternion" in rotation else ", unit: rad"
    return Embodiment.from_text(ARM.format(position=position, turn=turn, rotation=rotation, unit=unit))


def decoded(numbers: np.ndarray, rotation: str) -> Rotation:
    return Rotation.from_euler("xyz", numbers) if rotation == "euler_xyz" else Rotation.from_quat(numbers)


@pytest.mark.parametrize("rotation", ["euler_xyz", "quaternion_xyzw"])
@pytest.mark.parametrize(("position", "turn"), [("base", "base"), ("tool", "tool"), ("base", "tool")])
@pytest.mark.parametrize(("steps", "count"), [(12, 4), (10, 4), (2, 5), (3, 1)])
def test_end_effector_steps_lead_to_the_same_pose(
    rotation: str, position: str, turn: str, steps: int, count: int
) -> None:
    rng = np.random.default_rng(steps)
    turns = Rotation.random(steps, random_state=1)
    numbers = turns.as_euler("xyz") if rotation == "euler_xyz" else turns.as_quat()
    action = np.concatenate([rng.normal(size=(steps, 3)), numbers, rng.uniform(1, 5, (steps, 1))], axis=1)
    joined = ActionJoiner(arm(position, turn, rotation), count).join(action.astype(np.float32))
    assert joined.dtype == np.float32
    assert len(joined) == -(-steps // count)

    def moved(rows: np.ndarray, place: np.ndarray, facing: Rotation) -> tuple[np.ndarray, Rotation]:
        for row in rows:
            step = SCALE * row[:3]
            place = place + (facing.apply(step) if position == "tool" else step)
            by = decoded(row[3:-1], rotation)
            facing = facing * by if turn == "tool" else by * facing
        return place, facing

    place, facing = rng.normal(size=3), Rotation.random(random_state=2)
    for number, row in enumerate(joined):
        single = action[number * count : (number + 1) * count]
        one = moved(row[None], place, facing)
        place, facing = moved(single, place, facing)
        np.testing.assert_allclose(one[0], place, atol=1e-5)
        np.testing.assert_allclose(one[1].as_matrix(), facing.as_matrix(), atol=1e-5)
        assert row[-1] == np.float32(single[-1, -1]), "the last opening counts"


def test_joint_targets_and_steps_of_one_motion_stay_one_motion() -> None:
    rng = np.random.default_rng(3)
    steps = rng.normal(size=(11, 8)).astype(np.float32)
    start = rng.normal(size=7)
    targets = steps.copy()
    targets[:, :7] = start + np.cumsum(steps[:, :7], axis=0)
    by_target = ActionJoiner(Embodiment.load("franka_joints"), 3).join(targets)
    by_step = ActionJoiner(Embodiment.load("franka_joint_delta"), 3).join(steps)
    np.testing.assert_array_equal(by_target, targets[[2, 5, 8, 10]])
    np.testing.assert_allclose(start + np.cumsum(by_step[:, :7], axis=0), by_target[:, :7], atol=1e-5)
    np.testing.assert_array_equal(by_step[:, 7], by_target[:, 7])


def test_velocities_are_averaged() -> None:
    robot = Embodiment.load("mobile_base")
    action = np.arange(21, dtype=np.float32).reshape(7, 3)
    joined = ActionJoiner(robot, 3).join(action)
    np.testing.assert_allclose(joined, [action[:3].mean(0), action[3:6].mean(0), action[6]])
    assert ActionJoiner(robot, 3).join(action[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("scale: [1, 2, 0.5], frame: base", "scale: 1, frame: tool", "tool frame and 'rotation' is not"),
        ("rotation: euler_xyz", "rotation: axis_angle, axes: [x, y]", "turns about two axes make one about"),
        ("scale: [1, 2, 0.5]", "scale: 1, limits: [-1, 1]", r"its limits \[-1.0, 1.0\] are for one step"),
        ("right_gripper, gripper: {open: 5, closed: 1}", "right_joints, unit: rad", "add `command: target`"),
        ("right_gripper, gripper: {open: 5, closed: 1}", "torso_lift, unit: m", "add `command: target`"),
    ],
)
def test_refusals(old: str, new: str, wanted: str) -> None:
    text = ARM.format(position="base", turn="base", rotation="euler_xyz", unit=", unit: rad")
    assert old in text
    robot = Embodiment.from_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"2 steps of action '.*' of arm cannot be made one: .*{wanted}"):
        ActionJoiner(robot, 2)
    ActionJoiner(robot, 1)


def test_a_turn_about_one_axis_adds_up() -> None:
    text = ARM.format(position="tool", turn="base", rotation="axis_angle, axes: [z]", unit=", unit: rad")
    with pytest.raises(ValueError, match="'rotation' is not"):
        ActionJoiner(Embodiment.from_text(text), 2)
    robot = Embodiment.from_text(text.replace("frame: tool", "frame: base"))
    joined = ActionJoiner(robot, 2).join(np.array([[0, 0, 0, 0.25, 1], [0, 0, 0, 0.5, 2]], np.float32))
    np.testing.assert_allclose(joined, [[0, 0, 0, 0.75, 2]])
