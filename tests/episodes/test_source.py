"""Episodes in memory."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import EpisodeData, EpisodeDataset, MemoryDataset, fake_data, fake_episode


@pytest.mark.parametrize("name", Embodiment.available())
def test_fake_episode_fits_every_embodiment(name: str) -> None:
    robot = Embodiment.load(name)
    episode = fake_episode(robot, np.random.default_rng(0), length=4)
    assert len(episode) == 4
    robot.check_action(episode.action)
    assert episode.action.shape == (4, robot.action_dim)
    if robot.proprio:
        assert episode.state is not None
        assert episode.state.shape == (4, robot.proprio_dim)
    assert set(episode.cameras) == set(robot.cameras)
    assert episode.image(3, episode.cameras[0]).dtype == np.uint8
    assert episode.instruction


def test_memory_dataset_is_an_episode_dataset(robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    dataset = MemoryDataset("memory", robot, [fake_data(robot, rng, length) for length in (3, 5)])
    assert isinstance(dataset, EpisodeDataset)
    assert dataset.lengths.tolist() == [3, 5]
    assert dataset[1].episode_id == "1"


def test_encoded_images_are_decoded(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), length=2)
    pixels = np.asarray(data.images["primary"])
    jpegs = [simplejpeg.encode_jpeg(image, colorspace="RGB") for image in pixels]
    episode = EpisodeData(data.action, {"primary": jpegs}, "go").episode("x")
    assert episode.state is None
    assert np.array_equal(
        episode.image(1), simplejpeg.decode_jpeg(jpegs[1], fastdct=True, fastupsample=False)
    )


def test_missing_camera_key_and_step_say_what_there_is(robot: Embodiment) -> None:
    episode = fake_episode(robot, np.random.default_rng(0), length=2)
    with pytest.raises(ValueError, match=r"no camera 'front'; it has primary, wrist"):
        episode.image(0, "front")
    with pytest.raises(ValueError, match=r"no extra 'mass'; it has none"):
        episode.extra("mass")
    with pytest.raises(ValueError, match=r"step 2 asked, it has steps 0\.\.1"):
        episode.image(2)


def test_instructions_that_change(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), length=4)
    data.instruction, data.instruction_changes = "pick", [(1, "place"), (3, "pick")]
    episode = data.episode("x")
    assert data.step_instructions == ["pick", "place", "place", "pick"]
    assert [episode.instruction_at(t) for t in range(4)] == data.step_instructions
    assert episode.instructions == ("pick", "place")
    assert episode.told == "pick; then: place; then: pick"
    assert data.step_instructions.count("place") == 2
    for steps in ([0], [4], [2, 1], [2, 2]):
        with pytest.raises(ValueError, match=r"instruction_changes at steps .*; wanted ascending ones"):
            EpisodeData(data.action, data.images, "go", instruction_changes=[(step, "on") for step in steps])
