"""Folds of a cross-validation: whole episodes, never steps, and some of every robot in every fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def episode_folds(
    robot_index: Int64[np.ndarray, " N"], episodes: Sequence[str], folds: int, rng: np.random.Generator
) -> Int64[np.ndarray, " N"]:
    """The fold, 0 .. folds - 1, of each row.

    Each robot's episodes are shuffled and dealt to the folds in turn.

    Args:
        robot_index: robot of each row.
        episodes: each row's episode, a name that no other robot's episode has.
        folds: how many.
        rng: of the shuffle.

    Raises:
        ValueError: an episode of two robots, or a robot with fewer episodes than folds.
    """
    owner: dict[str, int] = {}
    for robot, episode in zip(robot_index.tolist(), episodes, strict=True):
        if owner.setdefault(episode, robot) != robot:
            raise ValueError(
                f"episode '{episode}' is of two robots; name episodes apart, e.g. with their dataset's name"
            )
    fold_of: dict[str, int] = {}
    for robot in sorted(set(owner.values())):
        mine = sorted(episode for episode, whose in owner.items() if whose == robot)
        if len(mine) < folds:
            raise ValueError(
                f"robot {robot} has {len(mine)} episode(s), cross-validation wants at least {folds}: take "
                "windows of more episodes, or fewer folds"
            )
        for turn, place in enumerate(rng.permutation(len(mine))):
            fold_of[mine[place]] = turn % folds
    return np.array([fold_of[episode] for episode in episodes], np.int64)
