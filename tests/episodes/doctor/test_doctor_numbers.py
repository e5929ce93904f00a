"""Infinities, huge and very few numbers get a report of what is wrong with them, and of nothing else."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, MemoryDataset
from vla_adapt.episodes.doctor.diagnosis import Diagnosis, examine
from vla_adapt.episodes.doctor.doctor_finding import Finding

ROBOT = Embodiment.load("franka_panda")


def recorded(lengths: tuple[int, ...], opening: float = 2.0) -> list[EpisodeData]:
    """A hand that wanders about; its gripper turns between closed and `opening` further open."""
    rng = np.random.default_rng(0)
    episodes = []
    for steps in lengths:
        action = rng.normal(0, 0.2, (steps, 7)).astype(np.float32)
        action[:, 6] = 1 - opening * (np.arange(steps) % 12 < 6)
        state = np.zeros((steps, 8), np.float32)
        state[:, :3] = 0.3 + 0.05 * np.cumsum(action[:, :3], axis=0)
        state[:, 3:7] = (1, 0, 0, 0)
        state[:, 7] = np.arange(steps) % 12 < 6
        images = {"primary": rng.integers(0, 255, (steps, 16, 16, 3), dtype=np.uint8)}
        episodes.append(EpisodeData(action=action, state=state, images=images, instruction="go"))
    return episodes


def diagnose(episodes: list[EpisodeData]) -> tuple[Diagnosis, dict[str, Finding]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnosis = examine([MemoryDataset("odd", ROBOT, episodes)], images=8)
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    return diagnosis, {finding.code: finding for finding in diagnosis.findings}


def test_infinity_is_told_once() -> None:
    episodes = recorded((40, 40, 40))
    episodes[0].action[3, 0], episodes[1].action[:, 1] = np.inf, np.nan
    found = diagnose(episodes)[1]
    assert found["non_finite"].numbers == {"steps": 41, "columns": [0, 1]}
    assert "beyond_limits" not in found


def test_nothing_but_nan_is_not_dead() -> None:
    episodes = recorded((40, 40))
    for episode in episodes:
        episode.action[:, 2] = np.nan
    found = diagnose(episodes)[1]
    assert found["non_finite"].numbers["columns"] == [2]
    assert "right_ee_position_delta.z" not in str(found.get("dead_dimension"))


@pytest.mark.parametrize("every", [200, 40])
def test_spikes_are_found_however_many(every: int) -> None:
    episodes = recorded((200, 200))
    assert "outliers" not in diagnose(episodes)[1]
    for episode in episodes:
        assert episode.state is not None
        episode.state[5::every, 1] = 1e30
    found = diagnose(episodes)[1]["outliers"]
    assert found.numbers["steps"] == 2 * 200 // every
    assert found.numbers["slot"] == "right_ee_position.y"


def test_two_steps_say_nothing_of_the_gripper() -> None:
    assert "gripper_scale" in diagnose(recorded((30,), opening=0.2))[1]
    assert "gripper_scale" not in diagnose(recorded((7,), opening=0.2))[1]
