"""Every n-th step of a dataset's episodes, as a dataset of its own: data recorded faster than is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.dataset_view import DatasetView
from vla_adapt.episodes.mapping.joined_actions import ActionJoiner
from vla_adapt.episodes.source import Episode, EpisodeDataset, Observations
from vla_adapt.episodes.storage.text_runs import every_nth


class StridedDataset(DatasetView):
    """View of the steps 0, n, 2n, ... of every episode of `dataset`; an n-th of its rate.

    What is seen is that of the kept step. Its action is what leads from it to the next kept one: see
    `joined_actions.ActionJoiner`. (Octo, which so reads ALOHA and GNM, keeps of absolute targets that of the
    kept step itself; here it is that of the last step before the next kept one, so that absolute and
    relative recordings of a motion stay the same.)

    Raises:
        ValueError: a component of the robot's action for which this is not defined.
    """

    def __init__(self, dataset: EpisodeDataset, stride: int):
        super().__init__(dataset)
        self.stride = stride
        try:
            self._joiner = ActionJoiner(dataset.embodiment, stride)
        except ValueError as error:
            raise ValueError(f"{dataset.name}: stride {stride}: {error}") from None

    def _place(self, index: int, t: int = 0) -> tuple[int, int]:
        return index, t * self.stride

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        return -(-self.dataset.lengths // self.stride)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Episode:
        episode = self.dataset[index]
        state = None if episode.state is None else episode.state[:: self.stride]
        return replace(episode, action=self._joiner.join(episode.action), state=state, **self._shown(episode))

    def observations(self, index: int) -> Observations:
        seen = episode_facts.observations(self.dataset, index)
        if isinstance(seen, Episode):
            return self[index]
        return replace(seen, length=-(-seen.length // self.stride), **self._shown(seen))

    def instructions(self, index: int) -> tuple[str, ...]:
        return self.observations(index).instructions

    def recorded_motion(self, index: int) -> bytes:
        return super().recorded_motion(index) + f"every {self.stride}".encode()

    def _shown(self, seen: Observations) -> dict[str, Any]:
        def read_extra(key: str) -> Shaped[np.ndarray, "T ..."]:
            return seen.read_extra(key)[:: self.stride]

        changes = seen.instruction_changes
        if changes:
            changes = tuple(every_nth(((0, seen.instruction), *changes), self.stride, seen.length)[1:])
        return {
            "instruction_changes": changes,
            "read_image": self._at(seen.read_image),
            "read_extra": read_extra,
            "read_depth": None if seen.read_depth is None else self._at(seen.read_depth),
            "fetch_image": None if seen.fetch_image is None else self._at(seen.fetch_image),
        }

    def _at(self, read: Callable[[int, str], Any]) -> Callable[[int, str], Any]:
        """`read` by the number of the kept step."""
        return lambda t, camera: read(t * self.stride, camera)
