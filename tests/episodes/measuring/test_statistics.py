"""Statistics over datasets equal those computed directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.measuring import motion_summary
from vla_adapt.episodes.measuring.statistics import robot_statistics


def test_all_steps_of_all_datasets_of_a_robot(
    written: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]
) -> None:
    base = Embodiment.load("mobile_panda")
    other = MemoryDataset("other", base, [fake_data(base, np.random.default_rng(0), 5)])
    got = robot_statistics([open_dataset(written), other, open_dataset(written, split="val")])
    assert list(got) == ["franka_panda", "mobile_panda"]
    everything = [data for split in recordings.values() for data in split]
    unifier = ActionUnifier(robot)
    values = unifier.to_unified(np.concatenate([data.action for data in everything]))[0].astype(np.float64)
    action = got["franka_panda"].action
    assert action.count == len(values) == sum(len(data) for data in everything)
    np.testing.assert_allclose(action.mean, values.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(action.q99, np.quantile(values, 0.99, axis=0), atol=1e-7)
    np.testing.assert_array_equal(action.mask, unifier.mask)
    state = np.concatenate([data.state for data in everything])
    proprio = ActionUnifier(robot, kind="proprio").to_unified(state)[0]
    assert got["franka_panda"].proprio is not None
    np.testing.assert_allclose(got["franka_panda"].proprio.max, proprio.max(axis=0), atol=1e-6)


def test_no_state_gives_no_proprio(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 4)
    data.state = None
    assert robot_statistics([MemoryDataset("blind", robot, [data])])["franka_panda"].proprio is None


def test_nan_names_dataset_episode_and_step(robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 4)
    data.action[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"bad: episode 0: step 2: action holds"):
        robot_statistics([MemoryDataset("bad", robot, [data])])


def test_two_meanings_of_one_name_are_refused(robot: Embodiment) -> None:
    other = robot.model_copy(update={"rate_hz": 7.0})
    data = [fake_data(robot, np.random.default_rng(0), 4)]
    with pytest.raises(ValueError, match="b: its embodiment 'franka_panda' differs from that of a"):
        robot_statistics([MemoryDataset("a", robot, data), MemoryDataset("b", other, data)])


def test_to_the_bit_what_all_steps_in_one_array_give(
    written: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]
) -> None:
    unifier, proprio = ActionUnifier(robot), ActionUnifier(robot, kind="proprio")
    train = recordings["train"]
    got = robot_statistics([open_dataset(written)])["franka_panda"]
    values = np.concatenate([unifier.to_unified(data.action)[0] for data in train])
    assert got.action == Statistics.from_samples(values, unifier.mask)
    values = np.concatenate([proprio.to_unified(data.state)[0] for data in train])
    assert got.proprio == Statistics.from_samples(values, proprio.mask)


def test_workers_and_the_cache_change_nothing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion_summary.pieces, "__defaults__", (8,))
    datasets = [open_dataset(written), open_dataset(written, split="val")]
    wanted = robot_statistics(datasets, cache=False)
    assert robot_statistics(datasets, workers=2, cache=False) == wanted
    assert robot_statistics(datasets, workers=3) == wanted, "filling the cache"
    assert robot_statistics(datasets) == wanted, "reading it"
    assert robot_statistics([datasets[0]]) != wanted


def test_robots_may_be_interleaved(robot: Embodiment) -> None:
    base = Embodiment.load("mobile_panda")
    rng = np.random.default_rng(0)
    parts = [
        MemoryDataset(name, kind, [fake_data(kind, rng, length, 8)])
        for name, kind, length in (("a", robot, 4), ("b", base, 5), ("c", robot, 6), ("d", base, 7))
    ]
    got = robot_statistics(parts)
    assert {name: statistics.action.count for name, statistics in got.items()} == {
        "franka_panda": 10,
        "mobile_panda": 12,
    }
    unifier = ActionUnifier(base)
    values = np.concatenate([unifier.to_unified(parts[i][0].action)[0] for i in (1, 3)])
    assert got["mobile_panda"].action == Statistics.from_samples(values, unifier.mask)


def test_an_empty_dataset_is_refused(robot: Embodiment) -> None:
    with pytest.raises(ValueError, match="nothing: no steps to compute statistics from"):
        robot_statistics([MemoryDataset("nothing", robot, [])])
