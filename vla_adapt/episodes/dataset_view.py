"""What a view of a dataset passes on to it: names, robot, words and facts of the episodes it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.mapping.stable_name import StableName
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.storage.stored import find_prefetcher


class DatasetView:
    """Base of views of `dataset`; a view says by `_place` which episode and step of it one of its own is."""

    def __init__(self, dataset: EpisodeDataset):
        self.dataset = dataset

    def _place(self, index: int, t: int = 0) -> tuple[int, int]:
        """Number of the episode and of the step in `dataset`."""
        return index, t

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def embodiment(self) -> Embodiment:
        return self.dataset.embodiment

    def prefetcher(self) -> Callable[[int, int, str], None] | None:
        inner = find_prefetcher(self.dataset)
        return None if inner is None else partial(self._prefetch, inner)

    def _prefetch(self, inner: Callable[[int, int, str], None], index: int, t: int, camera: str) -> None:
        inner(*self._place(index, t), camera)

    def episode_id(self, index: int) -> str:
        return episode_facts.episode_id(self.dataset, self._place(index)[0])

    def instruction(self, index: int) -> str:
        return episode_facts.instruction(self.dataset, self._place(index)[0])

    def metadata(self, index: int) -> Mapping[str, Any]:
        return episode_facts.metadata(self.dataset, self._place(index)[0])

    def stable_name(self, index: int) -> StableName:
        return episode_facts.stable_name(self.dataset, self._place(index)[0])

    def recorded_motion(self, index: int) -> bytes:
        return episode_facts.recorded_motion(self.dataset, self._place(index)[0])
