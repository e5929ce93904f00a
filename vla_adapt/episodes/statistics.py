"""Statistics of unified actions and proprioception per robot, over whole datasets; reads no image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import unify_motion
from vla_adapt.types import Layout


@dataclass(frozen=True)
class RobotStatistics:
    """Statistics of one robot; `proprio` is None when its data has no state."""

    action: Statistics
    proprio: Statistics | None


def robot_statistics(
    datasets: Iterable[EpisodeDataset], layout: Layout = "slots"
) -> dict[str, RobotStatistics]:
    """Statistics by robot name, every step of all its datasets counted once.

    Raises:
        ValueError: NaN or a wrong width (names dataset and episode), two embodiments of one name that differ.
    """
    by_robot: dict[str, list[EpisodeDataset]] = {}
    for dataset in datasets:
        group = by_robot.setdefault(dataset.embodiment.name, [])
        if group and group[0].embodiment != dataset.embodiment:
            raise ValueError(
                f"{dataset.name}: its embodiment '{dataset.embodiment.name}' differs from that of "
                f"{group[0].name}; open both with the same embodiment"
            )
        group.append(dataset)
    return {robot: _statistics(group, layout) for robot, group in by_robot.items()}


def _statistics(datasets: list[EpisodeDataset], layout: Layout) -> RobotStatistics:
    robot = datasets[0].embodiment
    action_unifier = ActionUnifier(robot, layout)
    proprio_unifier = ActionUnifier(robot, layout, kind="proprio") if robot.proprio else None
    actions: list[np.ndarray] = []
    proprios: list[np.ndarray] = []
    for dataset in datasets:
        for i in range(len(dataset)):
            episode = dataset[i]
            if not len(episode):
                continue
            try:
                motion = unify_motion(episode, action_unifier, proprio_unifier)
            except ValueError as error:
                raise ValueError(f"{dataset.name}: episode {episode.episode_id}: {error}") from None
            actions.append(motion.action)
            if motion.proprio is not None:
                proprios.append(motion.proprio)
    if not actions:
        raise ValueError(f"{datasets[0].name}: no steps to compute statistics from")
    action = Statistics.from_samples(np.concatenate(actions), action_unifier.mask)
    if not proprios:
        return RobotStatistics(action, None)
    assert proprio_unifier is not None
    return RobotStatistics(action, Statistics.from_samples(np.concatenate(proprios), proprio_unifier.mask))
