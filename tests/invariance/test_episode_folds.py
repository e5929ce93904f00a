"""Folds: whole episodes, every robot in every fold, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.invariance.episode_folds import episode_folds


def rows(episodes_of: tuple[int, ...], steps: int = 4) -> tuple[np.ndarray, list[str]]:
    """Robot and episode of every row, shuffled."""
    pairs = [
        (robot, f"{robot}-{episode}")
        for robot, count in enumerate(episodes_of)
        for episode in range(count)
        for _ in range(steps)
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    return np.array([pairs[i][0] for i in order]), [pairs[i][1] for i in order]


def test_an_episode_is_in_one_fold_and_every_robot_in_all():
    robots, episodes = rows((7, 12, 5))
    folds = episode_folds(robots, episodes, 5, np.random.default_rng(3))
    for name in set(episodes):
        assert len({fold for fold, episode in zip(folds, episodes, strict=True) if episode == name}) == 1
    for robot, count in enumerate((7, 12, 5)):
        sizes = [len({e for e, r, f in zip(episodes, robots, folds, strict=True) if r == robot and f == fold})
                 for fold in range(5)]  # fmt: skip
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1


def test_of_the_seed_and_not_of_the_order_of_rows():
    robots, episodes = rows((6, 6))
    folds = episode_folds(robots, episodes, 3, np.random.default_rng(1))
    again = episode_folds(robots[::-1], episodes[::-1], 3, np.random.default_rng(1))
    other = episode_folds(robots, episodes, 3, np.random.default_rng(2))
    assert np.array_equal(folds, again[::-1])
    assert not np.array_equal(folds, other)


def test_refusals():
    robots, episodes = rows((6, 2))
    with pytest.raises(ValueError, match=r"robot 1 has 2 episode\(s\), cross-validation wants at least 3"):
        episode_folds(robots, episodes, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'e' is of two robots"):
        episode_folds(np.array([0, 1]), ["e", "e"], 2, np.random.default_rng(0))
