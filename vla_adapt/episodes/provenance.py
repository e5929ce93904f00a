"""Where an opened dataset comes from: its entry, and what that says of publisher, license and cameras."""

from __future__ import annotations

from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset


def opened_as(dataset: EpisodeDataset) -> MappedDataset | None:
    """The stored dataset that a dataset is, or is a part of; None: it is not a stored one."""
    while isinstance(dataset, EpisodeSubset | StridedDataset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, MappedDataset) else None


def entry_of(dataset: EpisodeDataset) -> DatasetEntry | None:
    """The entry that a dataset, or what it is a part of, was opened by; None: it has none."""
    opened = opened_as(dataset)
    return None if opened is None else opened.entry


def provenance(dataset: EpisodeDataset) -> tuple[str, str]:
    """(license, source) of a dataset or of a part of it; empty where its entry does not say."""
    entry = entry_of(dataset)
    return ("", "") if entry is None else (entry.license, entry.source)


def stand_ins(dataset: EpisodeDataset) -> dict[str, str]:
    """Camera that a dataset or a part of it lacks -> the camera whose images it gives for it."""
    entry = entry_of(dataset)
    return {} if entry is None else entry.stand_in_cameras
