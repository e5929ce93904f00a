"""What is known of an episode without reading its numbers: names, instruction, metadata, what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_adapt.episodes.mapping.stable_name import StableName
from vla_adapt.episodes.source import Episode, EpisodeDataset, Observations


@runtime_checkable
class Described(Protocol):
    """A dataset that tells these cheaply; of any other the whole episode is opened."""

    def episode_id(self, index: int) -> str: ...

    def instruction(self, index: int) -> str: ...

    def instructions(self, index: int) -> tuple[str, ...]: ...

    def metadata(self, index: int) -> Mapping[str, Any]: ...

    def stable_name(self, index: int) -> StableName: ...

    def recorded_motion(self, index: int) -> bytes: ...


def episode_id(dataset: EpisodeDataset, index: int) -> str:
    """Stable name of an episode within its dataset."""
    return dataset.episode_id(index) if isinstance(dataset, Described) else dataset[index].episode_id


def instruction(dataset: EpisodeDataset, index: int) -> str:
    """Task of an episode in words, as of its first step."""
    return dataset.instruction(index) if isinstance(dataset, Described) else dataset[index].instruction


def instructions(dataset: EpisodeDataset, index: int) -> tuple[str, ...]:
    """The different tasks of an episode's steps in words, each once, in order."""
    return dataset.instructions(index) if isinstance(dataset, Described) else dataset[index].instructions


def metadata(dataset: EpisodeDataset, index: int) -> Mapping[str, Any]:
    """Facts about an episode as a whole: seed, success, source file, ..."""
    return dataset.metadata(index) if isinstance(dataset, Described) else dataset[index].metadata


def stable_name(dataset: EpisodeDataset, index: int) -> StableName:
    """Names of dataset and episode that copies, renamed folders and conversions keep."""
    if isinstance(dataset, Described):
        return dataset.stable_name(index)
    return StableName(dataset.name, dataset[index].episode_id)


def recorded_motion(dataset: EpisodeDataset, index: int) -> bytes:
    """The numbers recorded of an episode's action and state, to tell datasets apart by."""
    if isinstance(dataset, Described):
        return dataset.recorded_motion(index)
    episode = dataset[index]
    return episode.action.tobytes() + (b"" if episode.state is None else episode.state.tobytes())


def observations(dataset: EpisodeDataset, index: int) -> Observations:
    """What an episode shows; its motion is not read where the dataset can do without."""
    read = getattr(
        dataset, "observations", None
    )  # isinstance() of a protocol is slow, this is met per sample
    return dataset[index] if read is None else read(index)


def first_with_steps(datasets: Iterable[EpisodeDataset]) -> Episode:
    """The first episode of `datasets` that has any steps; there must be one."""
    return next(dataset[int(i)] for dataset in datasets for i in np.flatnonzero(dataset.lengths)[:1])


def by_robot(datasets: Iterable[EpisodeDataset]) -> dict[str, list[EpisodeDataset]]:
    """Datasets by the name of their robot, in the order met.

    Raises:
        ValueError: two different robots of one name.
    """
    groups: dict[str, list[EpisodeDataset]] = {}
    for dataset in datasets:
        group = groups.setdefault(dataset.embodiment.name, [])
        if group and group[0].embodiment != dataset.embodiment:
            raise ValueError(
                f"{dataset.name}: its embodiment '{dataset.embodiment.name}' differs from that of "
                f"{group[0].name}; open both with the same embodiment"
            )
        group.append(dataset)
    return groups
