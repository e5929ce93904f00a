"""Scripted experts of the simulated tasks: functions of the current state (no clocks, no hidden phases).

An image and the proprio show all that an expert decides by: how far the gripper is from the object, how
far it is open. So its actions can be imitated. Experts read the simulator's object pose; policies never do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla_adapt.sim.mobile import MobileWorld, is_driving
from vla_adapt.sim.worlds import World

Expert = Callable[[], Float[np.ndarray, " D"]]

POSITION_STEP_M, ROTATION_STEP_RAD = 0.05, 0.5  # what native +-1 commands
LIFT_M, TURN_TOLERANCE_RAD = 0.06, 0.15
OPEN, CLOSE = -1.0, 1.0
WITHIN_REACH_M = np.array([0.54, 0.0])  # where the mobile robot wants the cube, ahead of the base of its arm
DRIVE_GAIN, FASTEST = (
    1.5,
    0.8,
)  # base velocity per m or rad of error: it stands still within 0.1 m and 0.1 rad
REST_M = np.array([0.45, 0.0, 0.17])  # where its gripper is while it drives


@dataclass(frozen=True)
class Grasp:
    """When a gripper is placed to close on the cube, and when it holds it.

    `near_m`, `height_m`: largest distance of the grip site from the cube's axis and from its center's height;
    `held_opening`: the opening (0..1) below which the fingers touch the cube, which is 42 mm wide;
    `below_m`: how far below the cube's center to aim; `free_m`: off-axis error at which the
    fingers still clear it; `slope`: how much higher to stay per error beyond that.
    """

    near_m: float
    height_m: float
    held_opening: float
    below_m: float
    free_m: float = 0.016
    slope: float = 2.0


GRASPS = {
    "franka_panda": Grasp(near_m=0.015, height_m=0.015, held_opening=0.58, below_m=0.003),
    "mobile_panda": Grasp(near_m=0.015, height_m=0.015, held_opening=0.58, below_m=0.003),
    "bimanual_panda": Grasp(
        near_m=0.020, height_m=0.014, held_opening=0.36, below_m=0.004, free_m=0.018, slope=3.0
    ),
    "ur5e": Grasp(near_m=0.015, height_m=0.010, held_opening=0.25, below_m=0.012),
}


class LiftExpert:
    """Lifts the cube: down a funnel above it, close the gripper at the grasp pose, rise while it is held."""

    def __init__(self, world: World):
        self._world, self._grasp = world, GRASPS[world.robot]

    def __call__(self) -> Float[np.ndarray, " 7"]:
        """Native action of the arm and gripper for the world's current state."""
        arm, grasp = self._world.arms[0], self._grasp
        position, rotation = arm.gripper_pose()
        yaw = nearest_yaw(rotation, float(self._world.object_pose()[2]), np.pi / 2)
        offset = self._world.object_position() - [0.0, 0.0, grasp.below_m] - position
        turn = rotation_error(downward(yaw), rotation)
        if not at_grasp(offset, turn, arm.opening(), grasp):
            return arm_action(above(offset, turn, grasp), turn, OPEN)
        if arm.opening() < grasp.held_opening:
            offset[2] = LIFT_M
        return arm_action(offset, turn, CLOSE)


class DriveAndLiftExpert:
    """Drives until the cube is within reach, straight ahead, then lifts it as `LiftExpert` does.

    The base follows one proportional law throughout: parked, it is still asked to correct what is left, too
    slowly to move. A law that is 0 while parked (two steps of three) is not learned with an L1 loss: the
    median of sideways and turning velocities is then 0, whatever the image shows.
    """

    def __init__(self, world: MobileWorld):
        self._world, self._lift = world, LiftExpert(world)

    def __call__(self) -> Float[np.ndarray, " 10"]:
        """Native action of arm, gripper and base for the world's current state."""
        # An arm that left its rest pose (seen in the proprio) drives again only for a cube far out of reach.
        at_work = np.linalg.norm(self._world.arms[0].gripper_pose()[0] - REST_M) > 0.08
        error = np.append(self._world.object_position()[:2] - WITHIN_REACH_M, -self._world.base_heading())
        velocity = np.clip(error * DRIVE_GAIN / (1.6 if at_work else 1.0), -FASTEST, FASTEST)
        if is_driving(velocity):
            return np.concatenate([np.zeros(6), [OPEN], velocity])
        return np.concatenate([self._lift(), velocity])


class TwoArmLiftExpert:
    """Lifts the pot: each arm goes to its handle as `LiftExpert` does; both close, then both rise, level."""

    def __init__(self, world: World):
        self._world, self._grasp = world, GRASPS[world.robot]

    def __call__(self) -> Float[np.ndarray, " 14"]:
        """Native action of the right arm, then the left arm, for the world's current state."""
        world, grasp = self._world, self._grasp
        offsets, turns, there = [], [], []
        for index, arm in enumerate(world.arms):
            position, rotation = arm.gripper_pose()
            across = world.object_heading(index) + np.pi / 2  # close across the handle's bar
            turn = rotation_error(downward(nearest_yaw(rotation, across, np.pi)), rotation)
            offset = world.object_site(f"handle{index}", index) - [0.0, 0.0, grasp.below_m] - position
            offsets.append(offset)
            turns.append(turn)
            there.append(at_grasp(offset, turn, arm.opening(), grasp))
        close = all(there)  # a lone arm that closes would drag the pot
        held = close and all(arm.opening() < grasp.held_opening for arm in world.arms)
        heights = [arm.gripper_pose()[0][2] for arm in world.arms]
        action = []
        for offset, turn, near, height in zip(offsets, turns, there, heights, strict=True):
            if held:  # the pot couples the arms: rise and stay level, little else
                offset = np.append(0.3 * offset[:2], LIFT_M * 0.7 + np.mean(heights) - height)
                turn = turn * [0.5, 0.5, 0.0]
            move = offset if near else above(offset, turn, grasp)
            action.append(arm_action(move, turn, CLOSE if close else OPEN))
        return np.concatenate(action)


def at_grasp(
    offset_m: Float[np.ndarray, " 3"], turn_rad: Float[np.ndarray, " 3"], opening: float, grasp: Grasp
) -> bool:
    """Whether to close (or keep closed) the gripper; one that has begun to close tolerates small slips."""
    slack = 1.0 + 1.5 * (1.0 - opening)
    near, level = np.hypot(*offset_m[:2]) < grasp.near_m * slack, abs(offset_m[2]) < grasp.height_m * slack
    return bool(near and level and abs(turn_rad[2]) < TURN_TOLERANCE_RAD * slack)


def above(
    offset_m: Float[np.ndarray, " 3"], turn_rad: Float[np.ndarray, " 3"], grasp: Grasp
) -> Float[np.ndarray, " 3"]:
    """The offset to take instead, so that the fingers come down around the object: a funnel."""
    error = max(np.hypot(*offset_m[:2]), 0.05 * np.linalg.norm(turn_rad))
    return offset_m + np.array([0.0, 0.0, np.clip(grasp.slope * (error - grasp.free_m), 0.0, 0.07)])


def arm_action(
    offset_m: Float[np.ndarray, " 3"], turn_rad: Float[np.ndarray, " 3"], gripper: float
) -> Float[np.ndarray, " 7"]:
    """Proportional control towards a pose, in native numbers clipped to [-1, 1]."""
    move = np.concatenate([offset_m / POSITION_STEP_M * 2.5, turn_rad / ROTATION_STEP_RAD * 2.0])
    return np.append(np.clip(move, -1.0, 1.0), gripper)


def downward(yaw_rad: float) -> Float[np.ndarray, "3 3"]:
    """Rotation of a gripper that points down, its closing axis (x) turned by `yaw_rad` in the base frame."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def nearest_yaw(rotation: Float[np.ndarray, "3 3"], yaw_rad: float, period_rad: float) -> float:
    """The yaw nearest to the gripper's that equals `yaw_rad` up to multiples of `period_rad`."""
    now = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(now + (yaw_rad - now + period_rad / 2) % period_rad - period_rad / 2)


def rotation_error(
    wanted: Float[np.ndarray, "3 3"], now: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, " 3"]:
    """Axis-angle (rad, base frame) that turns `now` into `wanted`; for errors well below pi."""
    difference = wanted @ now.T
    axis = 0.5 * np.array(
        [
            difference[2, 1] - difference[1, 2],
            difference[0, 2] - difference[2, 0],
            difference[1, 0] - difference[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(axis), 0.5 * (np.trace(difference) - 1.0)
    return axis if sine < 1e-9 else axis / sine * np.arctan2(sine, cosine)


def make_expert(world: World) -> Expert:
    """The expert of a world's task: call it for the native action at the world's current state."""
    if isinstance(world, MobileWorld):
        return DriveAndLiftExpert(world)
    if world.robot == "bimanual_panda":
        return TwoArmLiftExpert(world)
    return LiftExpert(world)
