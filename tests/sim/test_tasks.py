import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.sim.tasks import TASKS, find_task


@pytest.mark.parametrize("robot", sorted(TASKS))
def test_every_task_is_an_embodiment_with_the_cameras_it_renders(robot):
    task, embodiment = TASKS[robot], Embodiment.load(robot)
    assert task.robot == robot
    assert "primary" in embodiment.cameras
    assert ("wrist" in embodiment.cameras) == (task.wrist_camera is not None)
    assert embodiment.rate_hz == 20


@pytest.mark.parametrize("robot", sorted(TASKS))
def test_instructions_are_different_lower_case_sentences(robot):
    instructions = TASKS[robot].instructions
    assert len(set(instructions)) == len(instructions) >= 3
    assert all(text == text.lower().strip() and not text.endswith(".") for text in instructions)


def test_an_unknown_robot_is_refused_with_the_near_name():
    with pytest.raises(
        ValueError, match=r"no simulation of robot 'franka_pand'; did you mean 'franka_panda'"
    ):
        find_task("franka_pand")
