import numpy as np
import pytest

from vla_adapt.sim.rollout import rollout
from vla_adapt.sim.worlds import World


class FakeWorld(World):
    """No simulator. Succeeds once its one-number state, the sum of its actions, reaches 10."""

    max_steps, prompt = 20, "reach ten"

    def __init__(self):
        pass

    def reset(self, seed):
        self.seed, self.steps, self.total, self.images = seed, 0, 0.0, 0

    def observe(self):
        return {
            "images": {"primary": self.render("primary")},
            "state": np.array([self.total]),
            "prompt": self.prompt,
        }

    def render(self, camera):
        self.images += 1
        return np.full((4, 4, 3), self.steps, np.uint8)

    def step(self, action):
        self.steps += 1
        self.total += float(action[0])

    def success(self):
        return self.total >= 10


def test_a_rollout_ends_with_success_in_the_middle_of_a_chunk():
    calls = []
    result = rollout(
        FakeWorld(), lambda seen: calls.append(seen["state"][0]) or np.ones((8, 1)), seed=7, execute=4
    )
    assert result.success
    assert result.steps == 10
    assert calls == [0.0, 4.0, 8.0]
    assert (result.seed, result.prompt) == (7, "reach ten")
    assert [int(frame[0, 0, 0]) for frame in result.frames] == [0, 4, 8, 10]


def test_a_rollout_gives_up_at_the_step_limit():
    world = FakeWorld()
    result = rollout(world, lambda seen: np.zeros((3, 1)), seed=0, execute=8, keep_frames=False)
    assert not result.success
    assert result.steps == world.steps == 20
    assert result.frames == []
    assert world.images == 7


@pytest.mark.parametrize("returned", [np.zeros(3), np.zeros((0, 3))])
def test_what_is_not_a_chunk_of_actions_is_refused(returned):
    with pytest.raises(ValueError, match=r"wanted actions \[H, D\]"):
        rollout(FakeWorld(), lambda seen: returned, seed=0)


def test_execute_must_be_positive():
    with pytest.raises(ValueError, match="execute is 0"):
        rollout(FakeWorld(), lambda seen: np.zeros((1, 1)), seed=0, execute=0)
