"""The held-out windows that validation looks at: always the same ones, balanced over episodes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import Window, window
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.training.setting import Setting

ROWS = 16  # windows in one pass, of all robots mixed: results are the same on any number of processes
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Place:
    """Which step a window is cut at."""

    robot: str
    dataset: EpisodeDataset
    episode: int
    step: int


class HeldOutBatches(Dataset[PolicyBatch]):
    """Map-style: batch number k of the fixed set, as the policy sees it when served (no augmentation).

    Args:
        setting: of the run.
        count: windows per robot; fewer where its held-out episodes have fewer steps.
    """

    def __init__(self, setting: Setting, count: int) -> None:
        recipe = setting.recipe
        self._horizon, self._camera = recipe.policy.head.horizon, recipe.policy.camera
        self._more_cameras = recipe.policy.more_cameras
        self._builder: BatchBuilder = copy.copy(setting.builder)
        self._builder.augment, self._builder.summaries = None, None
        self._order = list(setting.robots)
        self._unifiers = {
            name: (ActionUnifier(robot.embodiment), ActionUnifier(robot.embodiment, kind="proprio"))
            for name, robot in setting.robots.items()
        }
        places = _mixed([
            held_out_places(name, robot.held_out, count) for name, robot in setting.robots.items()
        ])  # fmt: skip
        self._batches = [places[start : start + ROWS] for start in range(0, len(places), ROWS)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> PolicyBatch:
        places = sorted(self._batches[number], key=lambda place: self._order.index(place.robot))
        return self._builder.windows([self._window(place) for place in places])

    def _window(self, place: Place) -> Window:
        return window(
            place.dataset[place.episode], place.step, self._horizon, *self._unifiers[place.robot],
            (self._camera,), place.dataset.name, optional_cameras=self._more_cameras,
        )  # fmt: skip


def held_out_places(robot: str, datasets: Sequence[EpisodeDataset], count: int) -> list[Place]:
    """At most `count` different steps: as many of each episode as of any other, where lengths allow it.

    Within an episode they are evenly spaced, from another phase in each, so that one window per episode is
    not always its beginning. Where there are more episodes than `count` they are evenly spaced, too.
    """
    episodes = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    lengths = np.array([int(dataset.lengths[index]) for dataset, index in episodes], dtype=int)
    places = []
    for number, share in enumerate(_shares(lengths, count).tolist()):
        length = int(lengths[number])
        phase = int(length * (number * _GOLDEN % 1.0))
        steps = sorted((k * length // share + phase) % length for k in range(share))
        places += [Place(robot, *episodes[number], step) for step in steps]
    return places


def _shares(lengths: np.ndarray, count: int) -> np.ndarray:
    """How many windows of each episode: equal ones, what the short ones cannot give from the others."""
    shares = np.zeros_like(lengths)
    left = min(count, int(lengths.sum()))
    while left:
        able = np.flatnonzero(shares < lengths)
        if left < len(able):
            shares[able[np.arange(left) * len(able) // left]] += 1
            break
        grant = np.minimum(left // len(able), lengths[able] - shares[able])
        shares[able] += grant
        left -= int(grant.sum())
    return shares


def _mixed(places: Sequence[list[Place]]) -> list[Place]:
    """All robots' places such that every stretch holds about the same part of each robot's."""
    ranked = [((k + 0.5) / len(each), place) for each in places for k, place in enumerate(each)]
    return [place for _, place in sorted(ranked, key=lambda pair: pair[0])]
