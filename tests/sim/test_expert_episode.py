import numpy as np
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.sim.expert_episode import STEPS_AFTER_SUCCESS, expert_episode, moving_dimensions
from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.tasks import TASKS


@pytest.mark.parametrize(
    ("robot", "still"), [("ur5e", [6]), ("bimanual_panda", [6, 13]), ("mobile_panda", [6])]
)
def test_everything_but_the_grippers_moves(robot, still):
    embodiment = Embodiment.load(robot)
    moving = moving_dimensions(embodiment)
    assert len(moving) == embodiment.action_dim
    assert np.flatnonzero(~moving).tolist() == still


@pytest.mark.slow
@pytest.mark.parametrize("robot", sorted(TASKS))
def test_the_expert_succeeds_with_and_without_noise_and_repeats_itself(robot):
    pytest.importorskip("robosuite")
    world = make_world(robot)
    try:
        clean, noisy = expert_episode(world, 1, noise=False), expert_episode(world, 1)
        again = expert_episode(world, 1)
    finally:
        world.close()
    assert clean.metadata["success"]
    assert noisy.metadata["success"]
    assert STEPS_AFTER_SUCCESS < len(clean) < world.max_steps
    for data in (clean, noisy):
        assert data.action.shape == (len(data), world.embodiment.action_dim)
        assert data.state.shape == (len(data), world.embodiment.proprio_dim)
        assert len(data.images["primary"]) == len(data)
        assert data.instruction in world.task.instructions
    np.testing.assert_array_equal(noisy.action, again.action)
    np.testing.assert_array_equal(noisy.state, again.state)
    assert noisy.images == again.images
    assert not np.array_equal(clean.state[5], noisy.state[5])
    assert simplejpeg.decode_jpeg(noisy.images["primary"][0]).shape == (112, 112, 3)
