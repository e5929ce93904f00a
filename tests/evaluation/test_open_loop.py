"""Open loop: which steps are judged."""

from __future__ import annotations

import numpy as np

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import MemoryDataset, fake_data
from vla_adapt.evaluation.open_loop import evenly_spaced


def dataset(name: str, *lengths: int) -> MemoryDataset:
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(0)
    return MemoryDataset(name, robot, [fake_data(robot, rng, length) for length in lengths])


def test_all_steps_of_all_datasets_when_they_are_few():
    first, second = dataset("first", 2, 3), dataset("second", 1)
    places = [(data.name, episode, step) for data, episode, step in evenly_spaced([first, second], 100)]
    assert places == [
        ("first", 0, 0), ("first", 0, 1), ("first", 1, 0), ("first", 1, 1), ("first", 1, 2), ("second", 0, 0),
    ]  # fmt: skip


def test_few_of_many_reach_from_the_first_to_the_last():
    first, second = dataset("first", 40, 20), dataset("second", 40)
    places = [(data.name, episode, step) for data, episode, step in evenly_spaced([first, second], 5)]
    assert places[0] == ("first", 0, 0)
    assert places[-1] == ("second", 0, 39)
    assert len(set(places)) == 5
    assert {name for name, _, _ in places} == {"first", "second"}
