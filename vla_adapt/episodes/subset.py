"""Some episodes of a dataset, as a dataset of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.dataset_view import DatasetView
from vla_adapt.episodes.source import Episode, EpisodeDataset, Observations


class EpisodeSubset(DatasetView):
    """View of the episodes `indices` of `dataset`, in that order; nothing is copied."""

    def __init__(self, dataset: EpisodeDataset, indices: Sequence[int] | np.ndarray):
        super().__init__(dataset)
        self.indices: Int64[np.ndarray, " E"] = np.asarray(indices, np.int64).reshape(-1)

    def _place(self, index: int, t: int = 0) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: episode {index} of the {len(self)} chosen ones")
        return int(self.indices[index]), t

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        return self.dataset.lengths[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Episode:
        return self.dataset[self._place(index)[0]]

    def observations(self, index: int) -> Observations:
        return episode_facts.observations(self.dataset, self._place(index)[0])

    def instructions(self, index: int) -> tuple[str, ...]:
        return episode_facts.instructions(self.dataset, self._place(index)[0])
