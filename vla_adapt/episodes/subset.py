"""The first episodes of a dataset, as a dataset of its own."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import Episode, EpisodeDataset


class FirstEpisodes:
    """View of the first `count` episodes of `dataset`; nothing is copied.

    Raises:
        ValueError: the dataset holds fewer.
    """

    def __init__(self, dataset: EpisodeDataset, count: int):
        if not 1 <= count <= len(dataset):
            raise ValueError(f"{dataset.name}: asked for the first {count} episodes, it has {len(dataset)}")
        self._dataset, self._count = dataset, count

    @property
    def name(self) -> str:
        return self._dataset.name

    @property
    def embodiment(self) -> Embodiment:
        return self._dataset.embodiment

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        return self._dataset.lengths[: self._count]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name}: episode {index} of the first {self._count}")
        return self._dataset[index]
