"""Some episodes of a dataset, as a dataset of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.mapping.stable_name import StableName
from vla_adapt.episodes.source import Episode, EpisodeDataset, Observations
from vla_adapt.episodes.storage.stored import find_prefetcher


class EpisodeSubset:
    """View of the episodes `indices` of `dataset`, in that order; nothing is copied."""

    def __init__(self, dataset: EpisodeDataset, indices: Sequence[int] | np.ndarray):
        self.dataset = dataset
        self.indices: Int64[np.ndarray, " E"] = np.asarray(indices, np.int64).reshape(-1)

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def embodiment(self) -> Embodiment:
        return self.dataset.embodiment

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        return self.dataset.lengths[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Episode:
        return self.dataset[self._at(index)]

    def observations(self, index: int) -> Observations:
        return episode_facts.observations(self.dataset, self._at(index))

    def prefetcher(self) -> Callable[[int, int, str], None] | None:
        inner = find_prefetcher(self.dataset)
        return None if inner is None else partial(self._prefetch, inner)

    def _prefetch(self, inner: Callable[[int, int, str], None], index: int, t: int, camera: str) -> None:
        inner(self._at(index), t, camera)

    def episode_id(self, index: int) -> str:
        return episode_facts.episode_id(self.dataset, self._at(index))

    def instruction(self, index: int) -> str:
        return episode_facts.instruction(self.dataset, self._at(index))

    def instructions(self, index: int) -> tuple[str, ...]:
        return episode_facts.instructions(self.dataset, self._at(index))

    def metadata(self, index: int) -> Mapping[str, Any]:
        return episode_facts.metadata(self.dataset, self._at(index))

    def stable_name(self, index: int) -> StableName:
        return episode_facts.stable_name(self.dataset, self._at(index))

    def recorded_motion(self, index: int) -> bytes:
        return episode_facts.recorded_motion(self.dataset, self._at(index))

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: episode {index} of the {len(self)} chosen ones")
        return int(self.indices[index])
