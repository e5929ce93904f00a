"""Build the simulated world of an embodiment by its name."""

from __future__ import annotations

from collections.abc import Sequence

from vla_adapt.sim.mobile import MobileWorld
from vla_adapt.sim.tasks import find_task
from vla_adapt.sim.worlds import World


def make_world(
    robot: str, seed: int = 0, image_size: int = 112, cameras: Sequence[str] = ("primary",)
) -> World:
    """Build the simulated world of an embodiment (takes seconds) and reset it to `seed`.

    Raises:
        ValueError: the robot is not simulated, has no such camera, or the simulator is not installed.
    """
    task = find_task(robot)
    kind = MobileWorld if task.base_start_m[1] > 0 else World
    return kind(task, seed, image_size, cameras)
