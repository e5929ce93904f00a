"""Where an opened dataset comes from: what its entry says of publisher and license."""

from __future__ import annotations

from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset


def provenance(dataset: EpisodeDataset) -> tuple[str, str]:
    """(license, source) of a dataset or of a part of it; empty where its entry does not say."""
    while isinstance(dataset, EpisodeSubset | StridedDataset):
        dataset = dataset.dataset
    if not isinstance(dataset, MappedDataset):
        return "", ""
    return dataset.entry.license, dataset.entry.source
