"""Every n-th step of stored episodes: what is seen is the kept step's, its action leads to the next one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import episode_facts as facts
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.mixture_spec import NamedMixture
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.episodes.recorded_rate import recorded_rate_hz
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import Episode, MemoryDataset
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset


@pytest.fixture
def whole(tmp_path: Path) -> MappedDataset:
    """Episodes of 7, 1 and 6 steps of a robot whose action is base-frame steps without limits, at 5 Hz."""
    robot, rng = Embodiment.load("widowx"), np.random.default_rng(0)
    with RldsWriter(tmp_path, "steps", robot) as writer:
        for length in (7, 1, 6):
            data = fake_data(robot, rng, length)
            data.extra = {"count": np.arange(length)}
            writer.add("train", data)
    return open_dataset(writer.path)


def test_what_a_kept_step_shows(whole: MappedDataset) -> None:
    kept = StridedDataset(whole, 3)
    assert (kept.name, len(kept), kept.lengths.tolist()) == ("steps", 3, [3, 1, 2])
    for number, long in enumerate(whole):
        episode = kept[number]
        assert len(episode) == kept.lengths[number]
        np.testing.assert_array_equal(episode.state, long.state[::3])
        np.testing.assert_array_equal(episode.extra("count"), long.extra("count")[::3])
        np.testing.assert_allclose(episode.action[:, :3].sum(0), long.action[:, :3].sum(0), atol=1e-6)
        assert (episode.instruction, episode.metadata) == (long.instruction, long.metadata)
        assert facts.episode_id(kept, number) == episode.episode_id == long.episode_id
        assert facts.instruction(kept, number) == long.instruction
        assert facts.metadata(kept, number) == long.metadata
        seen = facts.observations(kept, number)
        assert not isinstance(seen, Episode)
        assert len(seen) == len(episode)
        for t in range(len(episode)):
            for shown in (episode, seen):
                np.testing.assert_array_equal(shown.image(t), long.image(3 * t))
                np.testing.assert_array_equal(shown.pending_image(t, "primary")(), long.image(3 * t))
        with pytest.raises(ValueError, match="step"):
            episode.image(len(episode))


def test_a_mixture_draws_the_kept_steps(whole: MappedDataset) -> None:
    mixture = Mixture([(EpisodeSubset(StridedDataset(whole, 3), [0, 2]), 1.0)], 0, 2)
    assert mixture.steps == [5]
    for n in range(5):
        window = mixture.window(n)
        number, t = {"train/0": 0, "train/2": 2}[window["ids"]["episode"]], window["ids"]["step"]
        np.testing.assert_array_equal(window["images"]["primary"], whole[number].image(3 * t))
        covered = whole[number].action[3 * t : 3 * t + 3, :3].sum(0)
        np.testing.assert_allclose(window["action"][0, :3], covered, atol=1e-6)


def test_in_memory_too(whole: MappedDataset) -> None:
    robot = whole.embodiment
    data = fake_data(robot, np.random.default_rng(1), 5)
    kept = StridedDataset(MemoryDataset("m", robot, [data]), 2)
    seen = facts.observations(kept, 0)
    assert len(seen) == 3
    np.testing.assert_array_equal(seen.image(2), kept[0].image(2))
    assert kept.prefetcher() is None


def test_instructions_that_change(whole: MappedDataset) -> None:
    data = fake_data(whole.embodiment, np.random.default_rng(1), 8)
    data.instruction, data.instruction_changes = "a", ((1, "b"), (2, "c"), (6, "d"), (7, "e"))
    long = MemoryDataset("m", whole.embodiment, [data])
    kept = StridedDataset(long, 3)
    for seen in (kept[0], facts.observations(kept, 0)):
        told = [seen.instruction_at(t) for t in range(len(seen))]
        assert told == [long[0].instruction_at(3 * t) for t in range(3)] == ["a", "c", "d"]
        assert seen.instruction_changes == ((1, "c"), (2, "d"))
    assert facts.instructions(kept, 0) == ("a", "c", "d")


def test_names_by_which_episodes_are_held_out_stay(whole: MappedDataset) -> None:
    kept = StridedDataset(whole, 2)
    for number in range(3):
        assert facts.stable_name(kept, number) == facts.stable_name(whole, number)


def test_strides_of_equal_lengths_make_different_mixtures(whole: MappedDataset) -> None:
    once, again, other = (StridedDataset(EpisodeSubset(whole, [2]), n) for n in (3, 3, 4))
    assert once.lengths.tolist() == other.lengths.tolist()
    found = [Mixture([(each, 1.0)], 0, 2).fingerprint() for each in (once, again, other)]
    assert found[0] == found[1] != found[2]


def test_the_rate_is_an_nth(whole: MappedDataset) -> None:
    assert recorded_rate_hz(EpisodeSubset(StridedDataset(whole, 2), [1])) == 2.5
    assert recorded_rate_hz(EpisodeSubset(whole, [1])) == 5


def test_a_robot_whose_steps_do_not_join_is_named(two_robot_data: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="ur5e_fake: stride 2: 2 steps of action 'position' of ur5e cannot"):
        StridedDataset(open_dataset(two_robot_data["ur5e"]), 2)


def test_the_strides_of_named_mixtures_fit_their_robots() -> None:
    seen = {}
    for line in (line for name in NamedMixture.available() for line in NamedMixture.load(name).datasets):
        if line.stride != 1:
            entry = CATALOGUE[line.dataset]
            StridedDataset(MemoryDataset(line.dataset, Embodiment.load(entry.embodiment), []), line.stride)
            seen[line.dataset] = (entry.rate_hz or 0) / line.stride
    assert seen["aloha_static_dataset"] == seen["aloha_mobile_dataset"] == 10
    assert "gnm_dataset" in seen


def test_a_kept_step_has_its_own_instruction() -> None:
    robot = Embodiment.load("widowx")
    data = fake_data(robot, np.random.default_rng(0), 8)
    data.instruction, data.instruction_changes = "pick", [(1, "place"), (2, "pick"), (5, "home")]
    kept = StridedDataset(MemoryDataset("m", robot, [data]), 3)
    for seen in (kept[0], facts.observations(kept, 0)):
        assert [seen.instruction_at(t) for t in range(3)] == ["pick", "pick", "home"]
        assert seen.instruction_changes == ((2, "home"),)
    assert facts.instructions(kept, 0) == ("pick", "home")
