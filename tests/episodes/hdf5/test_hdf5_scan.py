"""Damaged HDF5 files and episodes: one line that names file, episode and field, or left out and reported."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_adapt.episodes import DatasetEntry, open_dataset
from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store

LENGTHS = (6, 4, 9, 5, 3, 7, 2, 8, 5, 4, 6, 3)
FIELDS = ("actions", "obs/ee_states", "obs/rgb")


def write_demos(
    path: Path, lengths: tuple[int, ...] = LENGTHS, mask: dict[str, list[int]] | None = None
) -> Path:
    """As robomimic and LIBERO write them."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i, steps in enumerate(lengths):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["dones"] = np.zeros(steps, np.uint8)
            demo["obs/ee_states"] = rng.normal(size=(steps, 6))
            image = rng.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8)
            demo.create_dataset("obs/rgb", data=image, compression="gzip")
            demo.attrs["num_samples"] = steps
        for name, numbers in (mask or {}).items():
            file[f"mask/{name}"] = np.array([f"demo_{i}" for i in numbers], dtype="S")
    return path


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return write_demos(tmp_path / "demos.hdf5")


@pytest.fixture
def one_per_file(tmp_path: Path) -> Path:
    """Twelve files of one episode each, as ALOHA's."""
    folder = tmp_path / "cups"
    folder.mkdir()
    for number in range(12):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            for name in ("action", "observations/qpos"):
                file[name] = np.full((number + 1, 14), number, np.float32)
    return folder


def change(path: Path, edit) -> None:
    with h5py.File(path, "a") as file:
        edit(file)


def test_a_mask_that_names_a_missing_demo(tmp_path: Path) -> None:
    write_demos(tmp_path / "a.hdf5", mask={"train": [0, 99]})
    with pytest.raises(
        ValueError, match=r"a\.hdf5: mask/train names demo_99, which is no episode of the file"
    ):
        Hdf5Store(tmp_path / "a.hdf5")


def test_truncated_file(demos: Path) -> None:
    demos.write_bytes(demos.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"demos\.hdf5: cannot be read as HDF5 \(.*truncated") as caught:
        Hdf5Store(demos)
    assert "\n" not in str(caught.value)
    demos.write_bytes(b"not hdf5 at all")
    with pytest.raises(ValueError, match=r"demos\.hdf5: cannot be read as HDF5"):
        Hdf5Store(demos)


def test_damaged_compressed_chunk_names_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "image.hdf5"
    write_demos(path, lengths=(4, 4))
    with h5py.File(path) as file:
        chunk = file["data/demo_1/obs/rgb"].id.get_chunk_info(0)
    Hdf5Store(path)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 20 : chunk.byte_offset + 60] = b"\xff" * 40
    path.write_bytes(data)
    store = Hdf5Store(path)
    store.image("obs/rgb", 0, 0)
    with pytest.raises(ValueError, match=r"image\.hdf5: 'data/demo_1/obs/rgb' cannot be read"):
        store.image("obs/rgb", 1, 0)


def test_missing_data_sets_name_file_demo_and_field(demos: Path) -> None:
    change(demos, lambda file: file.pop("data/demo_7/obs/ee_states"))
    with pytest.raises(
        ValueError,
        match=r"demos\.hdf5: data/demo_7 has no data set 'obs/ee_states'; it has actions, dones, obs/rgb",
    ):
        Hdf5Store(demos, required=FIELDS)
    change(demos, lambda file: file.pop("data/demo_3/actions"))
    with pytest.raises(ValueError, match=r"demos\.hdf5: demo_3 has no data set 'actions'; it has dones"):
        Hdf5Store(demos)
    with pytest.raises(
        ValueError, match=r"no data set 'act' in any episode; it has actions, dones, obs/ee_states"
    ):
        Hdf5Store(demos, required=("act",))


def test_unequal_lengths(demos: Path) -> None:
    def cut(file: h5py.File) -> None:
        values = file["data/demo_2/obs/ee_states"][:-1]
        del file["data/demo_2/obs/ee_states"]
        file["data/demo_2/obs/ee_states"] = values

    change(demos, cut)
    with pytest.raises(
        ValueError, match=r"data/demo_2: 'obs/ee_states' has shape \[8, 6\], 'actions' has 9 steps"
    ):
        Hdf5Store(demos, required=FIELDS)
    relaxed = Hdf5Store(demos)
    relaxed.numbers("obs/ee_states", 1)
    with pytest.raises(ValueError, match=r"demo_2: 'obs/ee_states' has shape \[8, 6\], the episode 9 steps"):
        relaxed.numbers("obs/ee_states", 2)


def test_a_declared_number_of_steps_that_is_not_true(demos: Path) -> None:
    change(demos, lambda file: file["data/demo_4"].attrs.modify("num_samples", "40"))
    with pytest.raises(ValueError, match=r"demo_4: 'actions' has 3 steps, the attribute num_samples says 40"):
        Hdf5Store(demos)


def test_wrong_dtype_or_width_in_one_episode(demos: Path) -> None:
    def widen(file: h5py.File) -> None:
        del file["data/demo_5/actions"]
        file["data/demo_5/actions"] = np.zeros((LENGTHS[5], 8))

    def words(file: h5py.File) -> None:
        del file["data/demo_5/actions"]
        file["data/demo_5/actions"] = ["left"] * LENGTHS[5]

    change(demos, widen)
    with pytest.raises(
        ValueError, match=r"demo_5: 'actions' is number float32\[8\], in earlier episodes number float32\[7\]"
    ):
        Hdf5Store(demos)
    change(demos, words)
    with pytest.raises(ValueError, match=r"demo_5: 'actions' is text .*, in earlier episodes number"):
        Hdf5Store(demos)


def test_the_index_is_reused_and_follows_the_files(demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Hdf5Store(demos)
    folders = list((demos.parent / ".vla_adapt_index").iterdir())
    assert len(folders) == 1
    stamp = folders[0].stat().st_ino
    again = Hdf5Store(demos)
    assert [folder.stat().st_ino for folder in folders] == [stamp]
    np.testing.assert_array_equal(again.column("actions"), first.column("actions"))
    change(demos, lambda file: file["data/demo_0/actions"].write_direct(np.full((6, 7), 0.5)))
    os.utime(demos, ns=(1, 1))
    np.testing.assert_array_equal(Hdf5Store(demos).numbers("actions", 0), np.full((6, 7), 0.5))
    assert len(list((demos.parent / ".vla_adapt_index").iterdir())) == 1, "the old one is gone"
    next((demos.parent / ".vla_adapt_index").glob("*/manifest.json")).write_text("{")
    np.testing.assert_array_equal(Hdf5Store(demos).lengths, LENGTHS)


def test_skipped_files_and_episodes_are_counted_and_named(one_per_file: Path, demos: Path) -> None:
    (one_per_file / "episode_3.hdf5").write_bytes((one_per_file / "episode_3.hdf5").read_bytes()[:-300])
    change(one_per_file / "episode_5.hdf5", lambda file: file.pop("observations/qpos"))
    with pytest.raises(ValueError, match=r"episode_3\.hdf5: cannot be read as HDF5"):
        Hdf5Store(one_per_file, required=("action", "observations/qpos"))
    with pytest.warns(UserWarning, match=r"cups: skipped 2 damaged of 12 episodes: .*episode_3\.hdf5"):
        store = Hdf5Store(one_per_file, required=("action", "observations/qpos"), on_error="skip")
    assert store.lengths.tolist() == [1, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    assert [text.split(": ")[0][-14:] for text in store.skipped] == ["episode_3.hdf5", "episode_5.hdf5"]
    with h5py.File(one_per_file / "episode_4.hdf5") as file:
        np.testing.assert_array_equal(store.numbers("action", 3), file["action"][:])
    with pytest.raises(ValueError, match=r"episode_3\.hdf5: cannot be read"):
        Hdf5Store(one_per_file, required=("action", "observations/qpos"))

    def break_two(file: h5py.File) -> None:
        del file["data/demo_1/actions"]
        file["data/demo_2"].attrs["num_samples"] = "2"

    change(demos, break_two)
    entry = DatasetEntry(
        embodiment="franka_panda",
        cameras={"primary": "obs/rgb"},
        state=(),
        instruction="",
        action=("actions",),
    )
    with pytest.warns(UserWarning, match="skipped 2 damaged of 12"):
        dataset = open_dataset(demos, entry=entry, on_error="skip")
    assert [dataset.episode_id(i).rsplit("_", 1)[1] for i in range(3)] == ["0", "3", "4"]


def test_nothing_readable_is_an_error_either_way(demos: Path) -> None:
    demos.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable episode: .*demos\.hdf5: cannot be read as HDF5"):
        Hdf5Store(demos, on_error="skip")


def test_masks_leave_out_what_was_skipped(tmp_path: Path) -> None:
    path = tmp_path / "image.hdf5"
    write_demos(path, lengths=(4, 5, 6), mask={"train": [0, 2], "valid": [1]})
    change(path, lambda file: file.pop("data/demo_0/actions"))
    with pytest.warns(UserWarning, match=r"skipped 1 damaged of 3"):
        assert Hdf5Store(path, on_error="skip").lengths.tolist() == [6]


@pytest.mark.parametrize("demo", [0, 2])
def test_a_field_that_some_episodes_lack_is_none_of_the_dataset(demos: Path, demo: int) -> None:
    change(demos, lambda file: file.__delitem__(f"data/demo_{demo}/dones"))
    store = Hdf5Store(demos, "train", FIELDS)
    assert "dones" not in store.fields
    assert set(FIELDS) <= store.fields.keys()
    has = "demos.hdf5: data/demo_1 has it, not every episode before"
    assert store.partial_fields == {"dones": has if demo == 0 else "demos.hdf5: data/demo_2 lacks it"}


def test_fields_of_some_files_are_none_of_the_dataset_and_why(one_per_file: Path) -> None:
    """Constants, which are no fields at all, are not among them."""
    for number in range(12):
        name = one_per_file / f"episode_{number}.hdf5"
        change(name, lambda file: file.__setitem__("camera_matrix", np.zeros((40, 3))))
        kind = np.int32 if number == 4 else np.float32
        change(name, lambda file, n=number, k=kind: file.__setitem__("effort", np.zeros((n + 1, 2), k)))
    change(one_per_file / "episode_7.hdf5", lambda file: file.__setitem__("late", np.zeros((8, 2))))
    store = Hdf5Store(one_per_file, "train", ("action",))
    assert store.fields.keys() == {"action", "observations/qpos"}
    assert store.partial_fields.keys() == {"effort", "late"}
    assert "in episode_4.hdf5" in store.partial_fields["effort"]
    assert store.partial_fields["late"] == "episode_7.hdf5: / has it, not every episode before"
