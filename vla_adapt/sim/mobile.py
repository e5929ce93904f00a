"""The simulated mobile manipulator: where its base starts, what it drives, the camera that it carries."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla_adapt.sim.rendering import CameraView
from vla_adapt.sim.worlds import World

BASE_JOINTS = ("joint_mobile_forward", "joint_mobile_side", "joint_mobile_yaw")
TOP_SPEED = np.array([1.0, 1.0, 1.5])  # m/s, m/s, rad/s at robosuite's +-1
DRIVING_SPEED = 0.15  # m/s or rad/s; slower commands count as standing still
BASE_FRICTION = 30.0  # robosuite's 250 N would swallow any speed below 0.25 m/s


class MobileWorld(World):
    """A world whose robot drives, and carries its camera.

    Native action: arm 6, gripper, base velocity (forward, left, turning left).

    While the base is told to move (faster than `DRIVING_SPEED`) the arm holds still in its base's frame;
    robosuite's `base_mode` flag, which no policy outputs, is set accordingly.
    """

    def base_heading(self) -> float:
        """Yaw of the base in the world (rad); 0 faces the table."""
        _, rotation = self.arms[0].base_pose()
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def obeyed(self, native_action: Float[np.ndarray, " 10"]) -> Float[np.ndarray, " 10"]:
        """The action with 0 for the arm while the base drives, and for the base while it is parked."""
        moves = np.full(len(native_action), is_driving(native_action[7:10]))
        moves[:7] = ~moves[:7]
        moves[6] = True  # the gripper always obeys
        return native_action * moves

    def _view_now(self, camera: str) -> CameraView | str:
        """The camera rides on the robot; the task gives its view in the frame of the arm's base."""
        view = self._views[camera]
        if isinstance(view, str):
            return view
        return view.carried(self.arms[0].base_pose()[0], self.base_heading())

    def _place_base(self, rng: np.random.Generator) -> None:
        prefix = self._env.robots[0].robot_model.base.naming_prefix
        joints = [self._model.joint(f"{prefix}{name}") for name in BASE_JOINTS]
        nearest, farthest, sideways = self.task.base_start_m
        self._data.qpos[[joint.qposadr[0] for joint in joints]] = [
            -rng.uniform(nearest, farthest),
            rng.uniform(-sideways, sideways),
            rng.uniform(-self.task.base_start_rad, self.task.base_start_rad),
        ]
        self._model.dof_frictionloss[[joint.dofadr[0] for joint in joints]] = BASE_FRICTION
        self._env.sim.forward()
        composite = self._env.robots[0].composite_controller
        composite.update_state()
        composite.reset()
        arm = composite.get_controller("right")
        arm.update(force=True)
        arm.goal_pos = arm.goal_ori = (
            None  # robosuite resets them to a world pose, but reads them in the base frame
        )

    def _robosuite_action(self, native_action: Float[np.ndarray, " 10"]) -> Float[np.ndarray, " 12"]:
        arm, gripper, velocity = native_action[:6], native_action[6], native_action[7:10]
        if not is_driving(velocity):
            return np.concatenate([arm, np.zeros(4), [gripper, -1.0]])
        base = self._env.robots[0].composite_controller.get_controller("base")
        _, base.init_ori = (
            base.get_base_pose()
        )  # robosuite turns velocities by the heading since then; we do it here
        cos, sin = np.cos(self.base_heading()), np.sin(self.base_heading())
        forward, left, turn = velocity
        world = np.array([cos * forward - sin * left, sin * forward + cos * left, turn]) / TOP_SPEED
        return np.concatenate([np.zeros(6), [0.0], world, [gripper, 1.0]])


def is_driving(velocity: Float[np.ndarray, " 3"]) -> bool:
    """Whether a base told to go at this velocity (native numbers) drives; else it stands still."""
    return bool(np.abs(velocity).max() > DRIVING_SPEED)
