"""What one simulated arm senses: its gripper's pose in the frame of the arm's base, and its opening."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class GripperKind:
    """A robosuite gripper.

    `fingers`: the joints of its two fingers and their signs; `closed`, `open`: their mean (m or rad);
    `open_joints`: all its joints when open; `close_command`: robosuite's internal command that closes it
    (its negative opens it).
    """

    fingers: dict[str, int]
    closed: float
    open: float
    open_joints: tuple[float, ...]
    close_command: tuple[float, float]


GRIPPERS = {
    "PandaGripper": GripperKind(
        {"finger_joint1": 1, "finger_joint2": -1}, 0.0, 0.039, (0.039, -0.039), (-1.0, 1.0)
    ),
    "Robotiq85Gripper": GripperKind(
        {"finger_joint": 1, "right_outer_knuckle_joint": 1},
        0.52,
        -0.026,
        (-0.026, -0.267, -0.2, -0.026, -0.267, -0.2),
        (1.0, 1.0),
    ),
}


class Arm:
    """Read access to one arm of a simulation. The base frame is the one robosuite's actions are given in."""

    def __init__(self, env: Any, robot: Any):
        """`env`: the robosuite environment; `robot`: one of its robots (its only arm is called right)."""
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self.gripper = robot.gripper["right"]
        prefix = robot.robot_model.naming_prefix
        self._base_site = self._model.site(f"{prefix}right_center").id
        self._grip_site = robot.eef_site_id["right"]
        self.kind = GRIPPERS[type(self.gripper).__name__]
        names = [f"{self.gripper.naming_prefix}{finger}" for finger in self.kind.fingers]
        self._signs = np.array(list(self.kind.fingers.values()))
        self._fingers = [self._model.joint(name).qposadr[0] for name in names]

    def open_now(self) -> None:
        """Set the gripper fully open, as it is at the start of an episode (call mj_forward afterwards)."""
        addresses = [self._model.joint(joint).qposadr[0] for joint in self.gripper.joints]
        self._data.qpos[addresses] = self.kind.open_joints
        self.command_gripper(-1.0)

    def command_gripper(self, native: float) -> None:
        """Make the next gripper command take full effect at once (native: -1 open, +1 close).

        robosuite ramps it over ten control steps, a hidden state that a policy could not see.
        """
        self.gripper.current_action = np.array(self.kind.close_command) * np.sign(native)

    def base_pose(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
        """Position (m) and rotation of the arm's base in the world."""
        return self._data.site_xpos[self._base_site].copy(), self._data.site_xmat[self._base_site].reshape(
            3, 3
        ).copy()

    def into_base(self, point_m: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
        """A world point (m) in the base frame."""
        origin, rotation = self.base_pose()
        return rotation.T @ (point_m - origin)

    def heading_into_base(self, yaw_rad: float) -> float:
        """A world yaw in the base frame, within +-pi."""
        _, rotation = self.base_pose()
        yaw = yaw_rad - np.arctan2(rotation[1, 0], rotation[0, 0])
        return float((yaw + np.pi) % (2 * np.pi) - np.pi)

    def gripper_pose(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
        """Position (m) and rotation of the grip site in the base frame."""
        _, rotation = self.base_pose()
        position = self.into_base(self._data.site_xpos[self._grip_site])
        return position, rotation.T @ self._data.site_xmat[self._grip_site].reshape(3, 3)

    def opening(self) -> float:
        """How far the gripper is open, 0 closed to 1 open."""
        spread = np.mean(self._data.qpos[self._fingers] * self._signs)
        travelled = (spread - self.kind.closed) / (self.kind.open - self.kind.closed)
        return float(np.clip(travelled, 0.0, 1.0))

    def state(self) -> Float[np.ndarray, " 8"]:
        """Position 3 (m), quaternion xyzw 4, opening 1: the arm's part of the native proprio."""
        position, rotation = self.gripper_pose()
        return np.concatenate([position, quaternion_xyzw(rotation), [self.opening()]]).astype(np.float32)


def quaternion_xyzw(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 4"]:
    """Unit quaternion of a rotation matrix, its largest component positive."""
    mujoco: Any = import_module("mujoco")
    wxyz = np.empty(4)
    mujoco.mju_mat2Quat(wxyz, np.ascontiguousarray(rotation).reshape(-1))
    xyzw = np.roll(wxyz, -1)
    return xyzw * np.sign(xyzw[np.argmax(np.abs(xyzw))])
