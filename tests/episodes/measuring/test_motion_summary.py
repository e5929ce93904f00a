"""Pieces of work, and processes that work on them."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import Episode, MemoryDataset, fake_data
from vla_adapt.episodes.measuring.motion_summary import Piece, pieces, summaries


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(0)
    return MemoryDataset("fake", robot, [fake_data(robot, rng, length, 8) for length in (3, 9, 4, 1, 6, 2)])


def test_pieces_are_whole_episodes_in_order(dataset: MemoryDataset) -> None:
    assert pieces([dataset, dataset], piece_steps=10) == [
        Piece(0, 0, 2, 12), Piece(0, 2, 5, 11), Piece(0, 5, 6, 2),
        Piece(1, 0, 2, 12), Piece(1, 2, 5, 11), Piece(1, 5, 6, 2),
    ]  # fmt: skip
    assert pieces([dataset]) == [Piece(0, 0, 6, 25)]


@pytest.mark.parametrize("workers", [1, 2, 5, 9])
def test_any_number_of_workers_gives_the_same_in_the_same_order(dataset: MemoryDataset, workers: int) -> None:
    cut = pieces([dataset], piece_steps=1)
    assert len(cut) == 6
    got = list(summaries([dataset], cut, "slots", workers))
    for index, summary in enumerate(got):
        assert summary.action.count == summary.proprio.count == len(dataset[index])
    alone = list(summaries([dataset], cut, "slots", 0))
    mask = np.ones(32, bool)
    for mine, theirs in zip(got, alone, strict=True):
        assert mine.action.statistics(mask) == theirs.action.statistics(mask)
        assert mine.proprio.statistics(mask) == theirs.proprio.statistics(mask)


class Spoiled(MemoryDataset):
    """Holds NaN in one episode, or dies at it."""

    deadly = False

    def __getitem__(self, index: int) -> Episode:
        episode = super().__getitem__(index)
        if index == 4 and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 4:
            episode.action[2, 0] = np.nan
        return episode


@pytest.mark.parametrize("workers", [0, 3])
def test_an_error_of_a_worker_is_the_same_single_line(workers: int) -> None:
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(0)
    bad = Spoiled("bad", robot, [fake_data(robot, rng, 4, 8) for _ in range(7)])
    with pytest.raises(ValueError, match=r"^bad: episode 4: step 2: action holds") as caught:
        list(summaries([bad], pieces([bad], piece_steps=1), "slots", workers))
    assert "\n" not in str(caught.value)


def test_a_killed_worker_is_reported() -> None:
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(0)
    bad = Spoiled("bad", robot, [fake_data(robot, rng, 4, 8) for _ in range(7)])
    bad.deadly = True
    with pytest.raises(ValueError, match=r"a worker process ended with code -9 .*use fewer workers"):
        list(summaries([bad], pieces([bad], piece_steps=1), "slots", 2))
