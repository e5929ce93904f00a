"""Predicted beside recorded actions over held-out episodes, kept in a file: drawing them needs no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.episodes.recorded_rate import recorded_rate_hz
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import unify_motion
from vla_adapt.evaluation.open_loop import BATCH, Place, cut_windows, unit_of
from vla_adapt.types import SLOT_NAMES

PREDICTIONS = "predictions.npz"
MOST_STEPS = 2000  # of an episode; what comes later is not drawn
_TEXTS = ("robot", "dataset", "episode", "instruction", "rate_hz", "names", "units")


@dataclass(frozen=True)
class DrawnEpisode:
    """An episode of T steps, D action components, and N chunks of H actions predicted from its observations.

    Attributes:
        episode: its name in the dataset.
        rate_hz: at which it was recorded.
        names, units: of each component.
        true: recorded, SI units.
        starts: step from which each chunk is predicted.
        predicted: SI units; a chunk may reach past the episode's end.
    """

    robot: str
    dataset: str
    episode: str
    instruction: str
    rate_hz: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    true: Float[np.ndarray, "T D"]
    starts: Int[np.ndarray, " N"]
    predicted: Float[np.ndarray, "N H D"]


def predict_episodes(
    policy: RobotPolicy, datasets: Sequence[EpisodeDataset], episodes: int, windows: int
) -> list[DrawnEpisode]:
    """Let `policy` predict from observations of held-out episodes.

    Args:
        policy: of the robot.
        datasets: held out.
        episodes: at most so many of them, evenly spaced over all datasets, the first and the last included.
        windows: at most so many observations of each, evenly spaced in time.
    """
    all_of_them = [(data, int(index)) for data in datasets for index in np.flatnonzero(data.lengths)]
    count = min(episodes, len(all_of_them))
    picked = np.unique(np.linspace(0, len(all_of_them) - 1, count).round().astype(int))
    return [_predict_episode(policy, *all_of_them[int(place)], windows) for place in picked]


def _predict_episode(policy: RobotPolicy, dataset: EpisodeDataset, index: int, windows: int) -> DrawnEpisode:
    episode = dataset[index]
    motion = unify_motion(episode, *policy.unifiers)
    live = np.flatnonzero(motion.action_mask & policy.action_statistics.mask)
    length = min(len(episode), MOST_STEPS)
    starts = np.unique(np.linspace(0, length - 1, min(windows, length)).round().astype(int))
    places: list[Place] = [(dataset, index, int(step)) for step in starts]
    chunks = [
        policy.predict_windows(cut_windows(policy, places[first : first + BATCH]))[..., live]
        for first in range(0, len(places), BATCH)
    ]
    return DrawnEpisode(
        robot=policy.robot, dataset=dataset.name, episode=episode.episode_id,
        instruction=episode.told, rate_hz=recorded_rate_hz(dataset),
        names=tuple(SLOT_NAMES[slot] for slot in live), units=tuple(unit_of(int(slot)) for slot in live),
        true=motion.action[:length, live], starts=starts, predicted=np.concatenate(chunks).astype(np.float32),
    )  # fmt: skip


def save_episodes(drawn: Sequence[DrawnEpisode], file: Path) -> None:
    """Write them as one compressed .npz."""
    texts = json.dumps([{name: getattr(each, name) for name in _TEXTS} for each in drawn])
    arrays = {
        f"{name}/{number}": getattr(each, name)
        for number, each in enumerate(drawn)
        for name in ("true", "starts", "predicted")
    }
    np.savez_compressed(file, texts=np.str_(texts), **arrays)


def load_episodes(file: Path) -> list[DrawnEpisode]:
    """What `save_episodes` wrote; none where there is no file."""
    if not file.is_file():
        return []
    with np.load(file, allow_pickle=False) as stored:
        return [
            DrawnEpisode(
                **{key: tuple(value) if isinstance(value, list) else value for key, value in each.items()},
                **{name: stored[f"{name}/{number}"] for name in ("true", "starts", "predicted")},
            )
            for number, each in enumerate(json.loads(str(stored["texts"])))
        ]
