"""Splits that are not there: the near name, or what to write instead of a slice; the same in every format."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.conversion.convert import convert_dataset
from vla_adapt.episodes.storage.split_names import unknown_split


def test_a_slice_is_told_from_a_misspelling() -> None:
    assert "did you mean 'train'?" in str(unknown_split("data", "trian", ["train", "val"]))
    for part in ("train[:10%]", "train[5:9]", "trian[-3:]"):
        error = str(unknown_split("data", part, ["train"]))
        assert error.startswith(f"data: no split '{part}'; slices are not read; `episodes: N`")
    assert "slices" not in str(unknown_split("data", "train[1]", ["train"]))


def test_in_every_format(two_robot_data: dict[str, Path], tmp_path: Path) -> None:
    convert_dataset(two_robot_data["ur5e"], tmp_path / "lerobot", "lerobot")
    entry = tmp_path / "entry.yaml"
    entry.write_text("{embodiment: ur5e, cameras: {}, action: [actions], state: [], instruction_text: lift}")
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    places = ((two_robot_data["ur5e"], None), (tmp_path / "lerobot", None), (tmp_path / "lift.hdf5", entry))
    for path, given in places:
        with pytest.raises(ValueError, match=rf"{path.name}.*: no split 'train\[:5\]'; slices are not read"):
            open_dataset(path, split="train[:5]", entry=given)
