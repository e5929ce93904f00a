"""Windows: observation at t, the next H unified actions, masks past the end."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, fake_episode
from vla_adapt.episodes.windows import unify_motion, window


@pytest.mark.parametrize("name", Embodiment.available())
def test_window_of_every_embodiment(name: str) -> None:
    robot = Embodiment.load(name)
    episode = fake_episode(robot, np.random.default_rng(0), length=6)
    unifier, proprio = ActionUnifier(robot), ActionUnifier(robot, kind="proprio")
    values = unifier.to_unified(episode.action)[0]
    for t in range(6):
        cut = window(episode, t, 4, unifier, proprio)
        inside = min(4, 6 - t)
        assert cut["action"].shape == cut["action_mask"].shape == (4, 32)
        assert cut["action"].dtype == np.float32
        np.testing.assert_array_equal(cut["action"][:inside], values[t : t + inside])
        assert (cut["action_mask"][:inside] == unifier.mask).all()
        assert not cut["action_mask"][inside:].any()
        assert (cut["action"][~cut["action_mask"]] == 0).all()
        np.testing.assert_array_equal(cut["proprio"], proprio.to_unified(episode.state[t])[0])
        np.testing.assert_array_equal(cut["proprio_mask"], proprio.mask)
        np.testing.assert_array_equal(cut["images"]["primary"], episode.image(t, "primary"))
        assert cut["robot"] == name
        assert cut["instruction"] == episode.instruction


def test_cameras_extras_and_ids(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 5)
    data.extra = {"pose": np.arange(15.0).reshape(5, 3)}
    cut = window(data.episode("e1"), 2, 2, ActionUnifier(robot), cameras=("wrist",), dataset="d")
    assert list(cut["images"]) == ["wrist"]
    assert cut["extra"]["pose"].tolist() == [6, 7, 8]
    assert cut["ids"] == {"dataset": "d", "episode": "e1", "step": 2}
    assert not cut["proprio_mask"].any()


def test_prepared_motion_gives_the_same(robot: Embodiment) -> None:
    episode = fake_episode(robot, np.random.default_rng(0))
    unifier, proprio = ActionUnifier(robot), ActionUnifier(robot, kind="proprio")
    motion = unify_motion(episode, unifier, proprio)
    for t in (0, 7):
        a, b = window(episode, t, 3, unifier, proprio), window(episode, t, 3, unifier, proprio, motion=motion)
        for key in ("action", "action_mask", "proprio", "proprio_mask"):
            np.testing.assert_array_equal(a[key], b[key])


def test_a_window_does_not_share_memory_with_the_cache(robot: Embodiment) -> None:
    episode = fake_episode(robot, np.random.default_rng(0))
    unifier, proprio = ActionUnifier(robot), ActionUnifier(robot, kind="proprio")
    motion = unify_motion(episode, unifier, proprio)
    cut = window(episode, 0, 3, unifier, proprio, motion=motion)
    for key in ("action", "action_mask", "proprio", "proprio_mask"):
        cut[key][...] = 1
    np.testing.assert_array_equal(motion.action, unifier.to_unified(episode.action)[0])
    assert not motion.action_mask.all()
    assert not motion.proprio_mask.all()


def test_tool_frame_actions_use_the_recorded_pose(robot: Embodiment) -> None:
    parts = tuple(
        part.model_copy(update={"frame": "tool"}) if part.group.kind in ("position", "rotation") else part
        for part in robot.action
    )
    tool = robot.model_copy(update={"action": parts})
    episode = fake_episode(tool, np.random.default_rng(0))
    unifier, proprio = ActionUnifier(tool), ActionUnifier(tool, kind="proprio")
    pose = proprio.ee_rotations(episode.state)
    cut = window(episode, 2, 2, unifier)
    np.testing.assert_allclose(cut["action"], unifier.to_unified(episode.action, pose)[0][2:4], atol=1e-6)


def test_refusals(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 4)
    unifier = ActionUnifier(robot)
    with pytest.raises(ValueError, match=r"d: episode e: no camera 'top'; it has primary, wrist"):
        window(data.episode("e"), 0, 2, unifier, cameras=("top",), dataset="d")
    with pytest.raises(ValueError, match=r"d: episode e: step 4 asked, it has steps 0\.\.3"):
        window(data.episode("e"), 4, 2, unifier, dataset="d")
    data.action[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"d: episode e: step 3: action holds"):
        window(data.episode("e"), 0, 2, unifier, dataset="d")
    data.action = data.action[:, :6]
    with pytest.raises(ValueError):
        window(data.episode("e"), 0, 2, unifier, dataset="d")
