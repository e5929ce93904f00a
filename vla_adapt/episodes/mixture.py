"""Weighted mixture of datasets as a pure function of the sample number: no buffer, no state, resume anywhere.

Sample n belongs to a dataset by weight (`interleave`), and to a step of it by a fresh permutation of all its
steps in every epoch of that dataset (`permutation`), so each dataset is drawn without replacement.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.interleave import Interleave
from vla_adapt.episodes.permutation import permuted
from vla_adapt.episodes.source import Episode, EpisodeDataset
from vla_adapt.episodes.windows import UnifiedMotion, Window, unify_motion, window
from vla_adapt.types import Layout

# Converted episodes kept per process, counted in steps: about 0.4 kB each, so at most about 100 MB.
KEPT_STEPS = 250_000


class Sample(NamedTuple):
    """One drawn step: dataset number, episode number, step."""

    dataset: int
    episode: int
    step: int


class Mixture:
    """Weighted datasets of one or several embodiments.

    Args:
        parts: (dataset, weight) pairs; only ratios of weights matter.
        seed: of the order.
        horizon: H, actions per window.
        layout: of the unified vectors.
        cameras: which cameras to decode.
        proprio: put the robot's state into the windows.

    Raises:
        ValueError: a weight that is not positive, an empty dataset, a camera a dataset lacks.
    """

    def __init__(
        self,
        parts: Sequence[tuple[EpisodeDataset, float | int]],
        seed: int,
        horizon: int,
        layout: Layout = "slots",
        cameras: Sequence[str] = ("primary",),
        proprio: bool = True,
    ):
        self.datasets = [dataset for dataset, _ in parts]
        self.seed, self.horizon, self.cameras = seed, horizon, tuple(cameras)
        if horizon < 1:
            raise ValueError(f"horizon {horizon}: wanted at least 1 action per window")
        self._kept: OrderedDict[tuple[int, int], tuple[Episode, UnifiedMotion]] = OrderedDict()
        self._kept_steps = 0
        self._interleave = Interleave([weight for _, weight in parts], seed)
        self._ends = [np.cumsum(dataset.lengths) for dataset in self.datasets]
        for dataset, ends in zip(self.datasets, self._ends, strict=True):
            if not len(ends) or not ends[-1]:
                raise ValueError(f"{dataset.name}: no steps to draw from; leave it out of the mixture")
            present = dataset[0].cameras
            for camera in self.cameras:
                if camera not in present:
                    raise ValueError(f"{dataset.name}: no camera '{camera}'; it has {', '.join(present)}")
        robots = [dataset.embodiment for dataset in self.datasets]
        self.action_unifiers = [ActionUnifier(robot, layout) for robot in robots]
        self.proprio_unifiers = [
            ActionUnifier(robot, layout, kind="proprio") if proprio and robot.proprio else None
            for robot in robots
        ]

    @property
    def robots(self) -> list[str]:
        """Names of the embodiments, each once, in the order of the datasets."""
        return list(dict.fromkeys(dataset.embodiment.name for dataset in self.datasets))

    @property
    def steps(self) -> list[int]:
        """Number of steps of each dataset: its epoch."""
        return [int(ends[-1]) for ends in self._ends]

    def sample(self, n: int) -> Sample:
        """Where sample number `n` lies."""
        dataset, occurrence = self._interleave.turn(n)
        ends = self._ends[dataset]
        epoch, k = divmod(occurrence, int(ends[-1]))
        row = permuted(k, int(ends[-1]), (self.seed, dataset, epoch))
        episode = int(np.searchsorted(ends, row, side="right"))
        return Sample(dataset, episode, row - (int(ends[episode - 1]) if episode else 0))

    def window(self, n: int) -> Window:
        """The window of sample number `n`; `ids` also holds "sample": n."""
        number, index, step = self.sample(n)
        episode, motion = self._episode(number, index)
        cut = window(
            episode,
            step,
            self.horizon,
            self.action_unifiers[number],
            self.proprio_unifiers[number],
            self.cameras,
            self.datasets[number].name,
            motion,
        )
        cut["ids"]["sample"] = n
        return cut

    def _episode(self, number: int, index: int) -> tuple[Episode, UnifiedMotion]:
        """An episode with its unified motion, kept while there is room (least recently used goes first)."""
        found = self._kept.get((number, index))
        if found is not None:
            self._kept.move_to_end((number, index))
            return found
        dataset = self.datasets[number]
        episode = dataset[index]
        try:
            motion = unify_motion(episode, self.action_unifiers[number], self.proprio_unifiers[number])
        except ValueError as error:
            raise ValueError(f"{dataset.name}: episode {episode.episode_id}: {error}") from None
        self._kept[number, index] = episode, motion
        self._kept_steps += len(episode)
        while self._kept_steps > KEPT_STEPS and len(self._kept) > 1:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._kept_steps -= len(oldest)
        return episode, motion

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_steps": 0}
