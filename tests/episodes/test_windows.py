"""Windows: observation at t, the next H unified actions, masks past the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simplejpeg import encode_jpeg

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Camera, Embodiment
from vla_adapt.episodes import EpisodeData, fake_data, fake_episode
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
        if episode.state is None:
            assert not robot.proprio
            assert not cut["proprio"].any()
        else:
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


def without(data: EpisodeData, *cameras: str) -> EpisodeData:
    return replace(data, images={name: images for name, images in data.images.items() if name not in cameras})


def test_a_missing_optional_camera_is_black_and_masked(robot: Embodiment) -> None:
    data, unifier = fake_data(robot, np.random.default_rng(0), 4, image_size=24), ActionUnifier(robot)
    asked = {"cameras": ("primary",), "optional_cameras": ("wrist", "top")}
    cut = window(data.episode("e"), 1, 2, unifier, **asked)
    assert cut["image_mask"] == {"primary": True, "wrist": True, "top": False}
    np.testing.assert_array_equal(cut["images"]["wrist"], data.images["wrist"][1])
    cut = window(without(data, "wrist").episode("e"), 1, 2, unifier, **asked)
    assert list(cut["images"]) == ["primary", "wrist", "top"]
    assert cut["image_mask"] == {"primary": True, "wrist": False, "top": False}
    np.testing.assert_array_equal(cut["images"]["primary"], data.images["primary"][1])
    for camera in ("wrist", "top"):
        assert cut["images"][camera].shape == (24, 24, 3)
        assert cut["images"][camera].dtype == np.uint8
        assert not cut["images"][camera].any()
    everything = window(data.episode("e"), 1, 2, unifier)
    assert everything["image_mask"] == {"primary": True, "wrist": True}


def test_a_required_camera_stays_an_error(robot: Embodiment) -> None:
    lacking = without(fake_data(robot, np.random.default_rng(0), 4), "wrist").episode("e")
    wanting = {"cameras": ("primary", "wrist"), "optional_cameras": ("wrist",)}
    with pytest.raises(ValueError, match="d: episode e: no camera 'wrist'; it has primary"):
        window(lacking, 0, 2, ActionUnifier(robot), dataset="d", **wanting)
    declared = robot.model_copy(update={"cameras": {**robot.cameras, "wrist": Camera(required=True)}})
    with pytest.raises(ValueError, match="d: episode e: no camera 'wrist'; it has primary"):
        window(lacking, 0, 2, ActionUnifier(declared), dataset="d", optional_cameras=("wrist",))
    with pytest.raises(ValueError, match="d: episode e: it has none of the cameras wrist"):
        window(lacking, 0, 2, ActionUnifier(robot), cameras=(), dataset="d", optional_cameras=("wrist",))


@pytest.mark.parametrize("t", range(5))
def test_history_repeats_the_first_step_before_the_start(robot: Embodiment, t: int) -> None:
    data = fake_data(robot, np.random.default_rng(0), 5)
    unifier, proprio = ActionUnifier(robot), ActionUnifier(robot, kind="proprio")
    optional = ("wrist", "top")
    cut = window(
        data.episode("e"), t, 2, unifier, proprio, ("primary",), optional_cameras=optional, history=3
    )
    assert cut["history_mask"].tolist() == [t >= 2, t >= 1, True]
    assert cut["images"]["top"].shape == cut["images"]["primary"].shape == (3, 32, 32, 3)
    assert cut["image_mask"] == {"primary": True, "wrist": True, "top": False}
    assert cut["proprio"].shape == (3, 32)
    for k, step in enumerate((max(t - 2, 0), max(t - 1, 0), t)):
        np.testing.assert_array_equal(cut["images"]["primary"][k], data.images["primary"][step])
        np.testing.assert_array_equal(cut["images"]["wrist"][k], data.images["wrist"][step])
        wanted = proprio.to_unified(data.episode("e").state[step])[0]
        np.testing.assert_array_equal(cut["proprio"][k], wanted)
    one = window(data.episode("e"), t, 2, unifier, proprio, ("primary",))
    assert "history_mask" not in one
    assert one["proprio"].shape == (32,)
    for key in ("action", "action_mask", "proprio_mask"):
        np.testing.assert_array_equal(cut[key], one[key])


def test_history_that_cannot_be(robot: Embodiment) -> None:
    data, unifier = fake_data(robot, np.random.default_rng(0), 4), ActionUnifier(robot)
    with pytest.raises(ValueError, match="d: episode e: history 0: wanted at least 1 step"):
        window(data.episode("e"), 0, 2, unifier, dataset="d", history=0)
    sizes = [encode_jpeg(np.zeros((side, 16, 3), np.uint8)) for side in (16, 16, 24, 24)]
    mixed = replace(data, images={"primary": sizes}).episode("e")
    assert window(mixed, 1, 2, unifier, history=2)["images"]["primary"].shape == (2, 16, 16, 3)
    message = r"'primary' gives \[16, 16, 3\] at step 1 and \[24, 16, 3\] at step 2; draw it without"
    with pytest.raises(ValueError, match=message):
        window(mixed, 2, 2, unifier, history=2)
