"""Episodes of many robots: read, written, mixed and cut into windows, without TensorFlow."""

from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.opening import open_dataset
from vla_adapt.episodes.source import (
    Episode,
    EpisodeData,
    EpisodeDataset,
    MemoryDataset,
    fake_data,
    fake_episode,
)

__all__ = [
    "DatasetEntry",
    "Episode",
    "EpisodeData",
    "EpisodeDataset",
    "MemoryDataset",
    "fake_data",
    "fake_episode",
    "open_dataset",
]
