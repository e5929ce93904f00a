"""Small recorded datasets shared by the episode tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data
from vla_adapt.episodes.write import RldsWriter

LENGTHS = {"train": (5, 9, 3, 7, 6), "val": (4, 2)}


@pytest.fixture(scope="session")
def robot() -> Embodiment:
    return Embodiment.load("franka_panda")


@pytest.fixture(scope="session")
def recordings(robot: Embodiment) -> dict[str, list[EpisodeData]]:
    """Random episodes by split, with extras of every storable kind."""
    rng = np.random.default_rng(7)
    episodes = {
        split: [fake_data(robot, rng, length) for length in sizes] for split, sizes in LENGTHS.items()
    }
    for data in (data for split in episodes.values() for data in split):
        steps = len(data)
        data.extra = {
            "object_pose": rng.normal(size=(steps, 3)).astype(np.float32),
            "count": rng.integers(-(2**62), 2**62, size=(steps, 2)),
            "touch": rng.integers(0, 2, size=steps).astype(bool),
            "wide": rng.normal(size=(steps, 80)).astype(np.float32),
        }
    return episodes


@pytest.fixture
def written(tmp_path: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]) -> Path:
    """A fresh dataset on disk, several shards, holding `recordings`."""
    with RldsWriter(tmp_path / "data", "written", robot, shard_bytes=30_000) as writer:
        for split, episodes in recordings.items():
            for data in episodes:
                writer.add(split, data)
    return writer.path
