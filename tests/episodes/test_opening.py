"""Finding a dataset, its entry and its robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, open_dataset


def test_version_parent_and_grandparent(written: Path) -> None:
    for path in (written, written.parent, written.parent.parent, str(written)):
        assert open_dataset(path).name == "written"


def test_several_datasets_must_be_named(written: Path) -> None:
    (written.parent / "2.0.0").mkdir()
    (written.parent / "2.0.0" / "features.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds several versions; name one of .*1\.0\.0, .*2\.0\.0"):
        open_dataset(written.parent)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no features\.json here or below"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="no such dataset folder"):
        open_dataset(tmp_path / "gone")


def test_unknown_and_missing_splits(written: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'trian'; did you mean 'train'\?"):
        open_dataset(written, split="trian")
    next(written.glob("*-val.tfrecord-*")).unlink()
    with pytest.raises(ValueError, match=r"written-val\.tfrecord-00000-of-00001: shard is missing"):
        open_dataset(written, split="val")


def test_without_entry_the_error_lists_the_fields(written: Path) -> None:
    (written / "vla_adapt.json").unlink()
    with pytest.raises(ValueError, match=r"not in the catalogue; pass entry=.*observation/primary"):
        open_dataset(written)
    entry = DatasetEntry(embodiment="franka_panda", cameras={"primary": "observation/primary"})
    assert open_dataset(written, entry=entry).embodiment == Embodiment.load("franka_panda")


def test_embodiment_argument_wins_over_the_recorded_one(written: Path) -> None:
    robot = Embodiment.load("franka_panda").model_copy(update={"name": "other"})
    assert open_dataset(written, embodiment=robot).embodiment.name == "other"
    assert open_dataset(written, embodiment="ur5e").embodiment.name == "ur5e"
    with pytest.raises(ValueError, match="unknown robot 'frank'"):
        open_dataset(written, embodiment="frank")


def test_catalogue_by_name(written: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no catalogue entry 'bridge_dataste'; did you mean 'bridge_dataset'\?"
    ):
        open_dataset(written, entry="bridge_dataste")


def test_unknown_transform(written: Path) -> None:
    entry = DatasetEntry(
        embodiment="franka_panda",
        cameras={"primary": "observation/primary"},
        transforms=("drop_frist_step",),
    )
    with pytest.raises(
        ValueError, match=r"unknown transform 'drop_frist_step'; did you mean 'drop_first_step'\?"
    ):
        open_dataset(written, entry=entry)


def test_damaged_sidecar_is_one_line(written: Path) -> None:
    (written / "vla_adapt.json").write_text('{"entry": 3}')
    with pytest.raises(ValueError, match=r"vla_adapt\.json: not a dataset description") as caught:
        open_dataset(written)
    assert "\n" not in str(caught.value)


def test_entry_from_a_yaml_file(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """embodiment: franka_panda
robot: my_panda
cameras: {primary: observation/wrist}
action:
  position: {field: action, columns: [0, 1, 2]}
  rotation: {field: action, columns: [3, 4, 5]}
  gripper: {field: observation/touch, open: 0, closed: 1}
state: []
"""
    )
    for entry in (path, str(path)):
        dataset = open_dataset(written, entry=entry)
        assert dataset.embodiment == Embodiment.load("franka_panda").model_copy(update={"name": "my_panda"})
    recorded = open_dataset(written)[2]
    extra = {"touch": "observation/touch"}
    plain = DatasetEntry(embodiment="franka_panda", cameras={"primary": "observation/wrist"}, extra=extra)
    touch = open_dataset(written, entry=plain)[2].extra("touch")
    episode = dataset[2]
    np.testing.assert_array_equal(episode.action[:, :6], recorded.action[:, :6])
    np.testing.assert_array_equal(episode.action[:, 6], np.where(touch, 1.0, -1.0))  # 1 closed, -1 open
    np.testing.assert_array_equal(episode.image(1), recorded.image(1, "wrist"))
    with pytest.raises(ValueError, match=r"no entry file .*gone\.yaml"):
        open_dataset(written, entry=tmp_path / "gone.yaml")
    path.write_text("embodiment: franka_panda\ncamera: {}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key 'camera'; did you mean 'cameras'\?"):
        open_dataset(written, entry=path)
