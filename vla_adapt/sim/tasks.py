"""The simulated robots as data: which robosuite task, its starts, what the camera sees, what to say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vla_adapt.sim.rendering import CameraView
from vla_adapt.suggest import did_you_mean

LIFT_INSTRUCTIONS = (
    "lift the red cube",
    "pick up the red cube",
    "pick up the cube",
    "grasp the red cube and lift it",
    "raise the red cube from the table",
)
GREEN_LIFT_INSTRUCTIONS = tuple(text.replace("red", "green") for text in LIFT_INSTRUCTIONS)
DRIVE_INSTRUCTIONS = (
    "drive to the table and lift the cube",
    "drive to the table and pick up the red cube",
    "go to the table and lift the red cube",
)
POT_INSTRUCTIONS = (
    "lift the pot with both arms",
    "pick up the pot with both hands",
    "raise the pot using both arms",
)
COLORS = {
    "floor": (0.45, 0.42, 0.38),
    "wall_": (0.80, 0.79, 0.76),
    "table_visual": (0.36, 0.45, 0.50),
    "cube": (0.92, 0.07, 0.05),
}
# The UR5e stands in another lab: same task, other table, wall and cube, as a new robot's scene would be.
OTHER_LAB_COLORS = {
    "floor": (0.30, 0.33, 0.30),
    "wall_": (0.62, 0.68, 0.74),
    "table_visual": (0.66, 0.58, 0.46),
    "cube": (0.05, 0.50, 0.18),
}


@dataclass(frozen=True)
class SimTask:
    """One robot doing one task.

    Attributes:
        robot: name of the embodiment.
        environment: robosuite task; `robots`: robosuite robot(s); `options`: more for robosuite.make.
        max_steps: control steps (20 Hz) after which an attempt counts as failed.
        instructions: paraphrases, one is drawn per episode.
        view: the primary camera: in the world, or of a mobile robot, which carries it on a boom, in the frame
            of the base of its arm. `wrist_camera`: the model's own camera on the gripper, or None.
        hidden: bodies or geoms (parts of names) that are not drawn: heavy and of no use to the task.
        colors: plain colors of geoms whose names start so.
        spread_m: the object is placed uniformly within +- this of the table's center, in x and y.
        spread_rad: and turned by up to +- this about `yaw_rad`.
        wrist_turn_rad: added to the last arm joint of the start pose.
        noise_scale: how strong the noise on the recording expert's actions is.
        slip_chance: per step, that its grippers do the opposite for a moment (see `noise.ActionNoise`).
        base_start_m: (nearest, farthest, sideways) start of a mobile base, from the place where it works.
        base_start_rad: its heading is off by up to +- this.
    """

    robot: str
    environment: str
    robots: tuple[str, ...]
    max_steps: int
    instructions: tuple[str, ...]
    view: CameraView
    options: dict[str, Any] = field(default_factory=dict)
    wrist_camera: str | None = None
    hidden: tuple[str, ...] = ("mount", "leg", "eef_target")
    colors: dict[str, tuple[float, float, float]] = field(default_factory=lambda: COLORS)
    spread_m: float = 0.12
    spread_rad: float = math.pi / 4
    yaw_rad: float = 0.0
    wrist_turn_rad: float = 0.0
    noise_scale: float = 1.0
    slip_chance: float = 0.03
    base_start_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    base_start_rad: float = 0.0


TASKS: dict[str, SimTask] = {
    task.robot: task
    for task in (
        SimTask(
            robot="franka_panda",
            environment="Lift",
            robots=("Panda",),
            max_steps=100,
            instructions=LIFT_INSTRUCTIONS,
            view=CameraView((-0.03, 0.0, 0.88), 0.6, 180.0, -32.0),
            wrist_camera="robot0_eye_in_hand",
            hidden=("mount", "leg", "eef_target", "link0", "link1", "link2"),
        ),
        SimTask(
            robot="ur5e",
            environment="Lift",
            robots=("UR5e",),
            max_steps=100,
            instructions=GREEN_LIFT_INSTRUCTIONS,
            colors=OTHER_LAB_COLORS,
            view=CameraView((-0.03, 0.0, 0.88), 0.6, 180.0, -32.0),
            wrist_camera="robot0_eye_in_hand",
        ),
        SimTask(
            robot="bimanual_panda",
            environment="TwoArmLift",
            robots=("Panda", "Panda"),
            max_steps=120,
            instructions=POT_INSTRUCTIONS,
            view=CameraView((0.0, 0.0, 0.92), 0.95, 180.0, -40.0),
            options={"env_configuration": "opposed"},
            spread_m=0.06,
            spread_rad=math.pi / 6,
            yaw_rad=math.pi,
            wrist_turn_rad=-math.pi / 2,
            noise_scale=0.6,
            slip_chance=0.0,
        ),
        SimTask(
            robot="mobile_panda",
            environment="Lift",
            robots=("PandaOmron",),
            max_steps=150,
            instructions=DRIVE_INSTRUCTIONS,
            # To the arm as the Franka's, so that what is known of its images holds; shows no cube far away.
            view=CameraView((0.53, 0.0, -0.03), 0.6, 180.0, -32.0),
            base_start_m=(0.4, 0.6, 0.15),
            base_start_rad=0.2,
        ),
    )
}


def find_task(robot: str) -> SimTask:
    """The simulated task of an embodiment.

    Raises:
        ValueError: that robot is not simulated.
    """
    if robot not in TASKS:
        raise ValueError(f"no simulation of robot {robot!r}; {did_you_mean(robot, TASKS)}")
    return TASKS[robot]
