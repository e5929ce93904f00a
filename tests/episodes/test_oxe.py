"""The catalogue's entries fit their embodiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.episodes.transforms import find_transforms


@pytest.mark.parametrize("name", CATALOGUE)
def test_entry_names_a_robot_its_cameras_and_known_transforms(name: str) -> None:
    entry = CATALOGUE[name]
    robot = Embodiment.load(entry.embodiment)
    assert all(camera in entry.cameras for camera, spec in robot.cameras.items() if spec.required)
    find_transforms(entry.transforms)


def test_bridge_is_found_by_its_name(shared_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_dir / "data" / "bridge_dataset", cache_dir=tmp_path)
    assert dataset.entry is CATALOGUE["bridge_dataset"]
    assert dataset.embodiment.name == "widowx"
    assert dataset[0].image(0, "primary").shape == (64, 64, 3)
