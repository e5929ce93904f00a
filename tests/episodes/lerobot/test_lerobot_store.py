"""LeRobot v2.1 and v3.0 read as written by hand, in any order, in any process; and clear refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, fake_data, open_dataset
from vla_adapt.episodes.lerobot.lerobot_store import LeRobotStore, conventional_entry, open_lerobot
from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot
from vla_adapt.episodes.mapping.entry import Sidecar
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.storage.stored import StoredEpisodes

CAMERA = "observation.images.top"
FORMATS = [(version, images) for version in ("v2.1", "v3.0") for images in ("video", "image")]
ByHand = Callable[..., Any]


def steps_of(made: Any) -> list[tuple[int, int]]:
    return [(i, t) for i, length in enumerate(made.lengths) for t in range(length)]


@pytest.mark.parametrize(("version", "images"), FORMATS)
def test_everything_written_is_read(lerobot_by_hand: ByHand, version: str, images: str) -> None:
    made = lerobot_by_hand(version, images)
    store = open_lerobot(made.path)
    assert isinstance(store, StoredEpisodes)
    assert (store.name, store.split, store.path) == ("by_hand", "train", made.path)
    assert store.lengths.tolist() == list(made.lengths)
    ends = np.cumsum(made.lengths)
    for i, (end, length) in enumerate(zip(ends, made.lengths, strict=True)):
        rows = slice(end - length, end)
        np.testing.assert_array_equal(store.numbers("action", i), made.action[rows])
        np.testing.assert_array_equal(store.numbers("observation.state", i), made.state[rows])
        assert store.numbers("next.done", i).tolist() == [False] * (length - 1) + [True]
        np.testing.assert_array_equal(
            store.numbers("timestamp", i), (np.arange(length) / 10).astype(np.float32)
        )
        assert list(store.texts("task", i)) == made.tasks[rows]
        assert list(store.texts("note", i)) == [f"note {row % 2}" for row in range(end - length, end)]
        for t in range(length):
            np.testing.assert_array_equal(store.image(CAMERA, i, t), made.frames[end - length + t])
    np.testing.assert_array_equal(store.column("action"), made.action)
    assert store.metadata(1) == {
        "episode_index": 1,
        "tasks": ["task of 1", "a second task"],
        "length": 6,
        "success": True,
    }
    assert {name: str(leaf) for name, leaf in store.fields.items()} == {
        "observation.state": "number float32[8]",
        "action": "number float32[7]",
        "next.done": "number bool[]",
        "note": "text string[]",
        CAMERA: "image uint8[16, 24, 3]",
        "timestamp": "number float32[]",
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "number int64[]"),
        "task": "text string[]",
    }


@pytest.mark.parametrize("keyframe_every", [2, 250])
def test_frames_in_any_order(lerobot_by_hand: ByHand, keyframe_every: int) -> None:
    made = lerobot_by_hand(lengths=(20, 40, 9), keyframe_every=keyframe_every)
    store = open_lerobot(made.path)
    starts = np.cumsum(made.lengths) - made.lengths
    places = steps_of(made)
    for i, t in np.random.default_rng(0).permutation(places).tolist() + places[::-1]:
        np.testing.assert_array_equal(store.image(CAMERA, i, t), made.frames[starts[i] + t])


def read_all(store: LeRobotStore, places: list[tuple[int, int]]) -> list[np.ndarray]:
    return [store.image(CAMERA, i, t) for i, t in places]


@pytest.mark.parametrize("images", ["video", "image"])
def test_pickled_and_forked_stores_read_on(lerobot_by_hand: ByHand, images: str) -> None:
    made = lerobot_by_hand("v3.0", images)
    store = open_lerobot(made.path)
    places = steps_of(made)
    read_all(store, places[:5])
    copy = pickle.loads(pickle.dumps(store))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply_async(read_all, (copy, places)).get(60)
        # The child that the fork made must not have moved the parent's files.
        here = read_all(store, places)
    np.testing.assert_array_equal(forked, made.frames)
    np.testing.assert_array_equal(here, made.frames)


def test_a_store_open_before_the_fork(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    store = open_lerobot(made.path)
    store.image(CAMERA, 1, 3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(read_all(store, steps_of(made))))
    child.start()
    here = read_all(store, steps_of(made))
    np.testing.assert_array_equal(queue.get(timeout=60), made.frames)
    np.testing.assert_array_equal(here, made.frames)
    child.join(10)
    assert child.exitcode == 0


def test_conventional_entry(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    store = open_lerobot(made.path)
    entry = conventional_entry(store, "franka_panda")
    assert entry.cameras == {"top": CAMERA, "primary": CAMERA}
    assert (entry.action, entry.state, entry.instruction) == (("action",), ("observation.state",), "task")
    dataset = MappedDataset(store, entry, Embodiment.load("franka_panda"))
    np.testing.assert_array_equal(dataset[1].action, made.action[4:10])
    assert dataset[1].instruction == "task of 1"
    np.testing.assert_array_equal(dataset[2].image(2), made.frames[12])
    with pytest.raises(
        ValueError, match=r"action \(action\) has width 7, embodiment bimanual_panda wants 14"
    ):
        MappedDataset(store, conventional_entry(store, "bimanual_panda"), Embodiment.load("bimanual_panda"))


def test_standard_columns_may_be_absent(lerobot_by_hand: ByHand) -> None:
    absent = ("timestamp", "frame_index", "episode_index", "index", "next.done")
    made = lerobot_by_hand(drop=absent)
    store = open_lerobot(made.path)
    assert "next.done" not in store.fields
    assert store.numbers("index", 1).tolist() == list(range(4, 10))
    assert store.numbers("frame_index", 1).tolist() == list(range(6))
    assert store.numbers("episode_index", 1).tolist() == [1] * 6
    np.testing.assert_array_equal(store.numbers("timestamp", 2), np.float32([0, 0.1, 0.2]))
    assert store.column("index").tolist() == list(range(13))
    np.testing.assert_array_equal(store.image(CAMERA, 1, 5), made.frames[9])


def test_without_task_index_an_episode_needs_one_task(lerobot_by_hand: ByHand) -> None:
    store = open_lerobot(lerobot_by_hand(drop=("task_index",)).path)
    assert list(store.texts("task", 0)) == ["task of 0"] * 4
    assert store.numbers("task_index", 2).tolist() == [3] * 3
    with pytest.raises(ValueError, match=r"episode 1 has 2 tasks and no column 'task_index'"):
        store.texts("task", 1)


def test_splits_are_ranges_of_episodes(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand(
        edit=lambda info: info.update(splits={"train": "0:1", "val": "1:3", "gone": "3:3"})
    )
    val = open_lerobot(made.path, "val")
    assert val.lengths.tolist() == [6, 3]
    np.testing.assert_array_equal(val.column("action"), made.action[4:])
    np.testing.assert_array_equal(val.numbers("action", 1), made.action[10:])
    np.testing.assert_array_equal(val.image(CAMERA, 1, 0), made.frames[10])
    assert val.metadata(0)["episode_index"] == 1
    with pytest.raises(ValueError, match=r"no split 'vla'; did you mean 'val'\?"):
        open_lerobot(made.path, "vla")
    with pytest.raises(ValueError, match="split 'gone' is empty"):
        open_lerobot(made.path, "gone")


def test_wide_arrays_stay_in_parquet(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image", edit=lambda info: info["features"].update(
        wide={"dtype": "float64", "shape": [10, 8], "names": None}))  # fmt: skip
    wide = np.random.default_rng(0).normal(size=(13, 10, 8))
    row = 0
    for file in sorted(made.path.glob("data/*/*.parquet")):
        table = pq.read_table(file)
        values = pa.array(wide[row : row + len(table)].tolist(), pa.list_(pa.list_(pa.float64())))
        row += len(table)
        pq.write_table(table.append_column("wide", values), file, row_group_size=4)
    store = open_lerobot(made.path)
    np.testing.assert_array_equal(store.numbers("wide", 1), wide[4:10].astype(np.float32))
    np.testing.assert_array_equal(store.column("wide"), wide.astype(np.float32))
    assert "wide" not in store._index.arrays


def test_missing_and_truncated_video(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand(files=(0, 1, 1))
    folder = made.path / "videos" / CAMERA / "chunk-000"
    (folder / "file-000.mp4").unlink()
    data = (folder / "file-001.mp4").read_bytes()
    (folder / "file-001.mp4").write_bytes(data[: len(data) // 2])
    store = open_lerobot(made.path)
    with pytest.raises(ValueError, match=r"file-000\.mp4: video file is missing.* \(episode 0 step 2\)"):
        store.image(CAMERA, 0, 2)
    with pytest.raises(ValueError, match=r"file-001\.mp4: not a readable video.*\(episode 2 step 0\)"):
        store.image(CAMERA, 2, 0)


def test_timestamp_beyond_the_video(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    other = made.path / "videos" / "chunk-000" / CAMERA
    (other / "episode_000000.mp4").rename(other / "episode_000001.mp4")  # 4 frames for 6 steps
    store = open_lerobot(made.path)
    store.image(CAMERA, 1, 3)
    with pytest.raises(
        ValueError, match=r"episode_000001\.mp4: no frame at 0\.5000 s .*\(episode 1 step 5\)"
    ):
        store.image(CAMERA, 1, 5)


def test_nan_names_episode_and_step(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image")
    file = made.path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    action = made.action[4:10].copy()
    action[2, 3] = np.nan
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", pa.array(action.tolist(), pa.list_(pa.float32(), 7))), file)
    store = open_lerobot(made.path)
    place = rf"by_hand: episode train/1 step 2: action field 'action' is not finite .*{file.name} from row 0"
    with pytest.raises(ValueError, match=place):
        MappedDataset(store, conventional_entry(store, "franka_panda"), Embodiment.load("franka_panda"))


def test_episodes_of_damaged_files_are_left_out_and_told(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", lengths=(4, 6, 3, 5))
    (made.path / "data" / "chunk-000" / "episode_000001.parquet").write_bytes(b"PAR1")
    (made.path / "videos" / "chunk-001" / CAMERA / "episode_000003.mp4").unlink()
    with pytest.warns(UserWarning, match=r"by_hand/train: skipped 2 damaged of 4 episodes: .*000001") as told:
        dataset = open_dataset(made.path, embodiment="franka_panda", on_error="skip")
    assert len(told) == 1
    names = [text.split(": ")[0].rsplit("/", 1)[1] for text in dataset.skipped]
    assert names == ["episode_000001.parquet", "episode_000003.mp4"]
    assert "video file is missing" in dataset.skipped[1]
    assert [episode.episode_id for episode in dataset] == ["train/0", "train/2"]
    assert dataset.lengths.tolist() == [4, 3]
    np.testing.assert_array_equal(dataset[1].action, made.action[10:13])
    np.testing.assert_array_equal(dataset[1].image(2), made.frames[12])
    assert dataset[1].instruction == "task of 2"
    assert dataset.metadata(1)["episode_index"] == 2
    wanted = np.concatenate([made.action[:4], made.action[10:13]])
    np.testing.assert_array_equal(dataset.store.column("action"), wanted)
    with pytest.raises(ValueError, match=r"episode_000001\.parquet: not a readable parquet file"):
        open_dataset(made.path, embodiment="franka_panda")


def test_skipping_on_sound_data_is_silent_and_on_none_an_error(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v3.0", edit=lambda info: info.update(splits={"train": "0:2", "val": "2:3"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_lerobot(made.path, on_error="skip").skipped == []
    (made.path / "data" / "chunk-000" / "file-001.parquet").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_lerobot(made.path, on_error="skip").skipped == [], "the other split is whole"
    with pytest.raises(ValueError, match=r"split 'val' has no readable episode: .*file-001.* is missing"):
        open_lerobot(made.path, "val", on_error="skip")


def test_nan_is_left_out_after_damaged_files(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image", lengths=(4, 6, 3))
    folder = made.path / "data" / "chunk-000"
    (folder / "episode_000000.parquet").unlink()
    table = pq.read_table(folder / "episode_000001.parquet")
    action = np.full((6, 7), np.nan, np.float32)
    at = table.column_names.index("action")
    spoiled = table.set_column(at, "action", pa.array(action.tolist(), pa.list_(pa.float32(), 7)))
    pq.write_table(spoiled, folder / "episode_000001.parquet")
    with pytest.warns(UserWarning, match="skipped 1 damaged"):
        dataset = open_dataset(made.path, embodiment="franka_panda", on_error="skip")
    assert [episode.episode_id for episode in dataset] == ["train/2"]
    assert ["is missing" in dataset.skipped[0], "train/1 step 0" in dataset.skipped[1]] == [True, True]


def test_a_changed_image_is_noticed_when_images_are_verified(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image")
    file = made.path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table, file, compression="NONE", use_dictionary=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(made.path, embodiment="franka_panda", verify_images=True)
    state, content = file.stat(), file.read_bytes()
    first, second = (table[CAMERA][row].as_py()["bytes"] for row in (2, 3))
    assert (content.count(first), len(first)) == (1, len(second))
    file.write_bytes(content.replace(first, second))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    unaware = open_dataset(made.path, embodiment="franka_panda")
    np.testing.assert_array_equal(unaware[1].image(2), made.frames[4 + 3])
    aware = open_dataset(made.path, embodiment="franka_panda", verify_images=True)
    np.testing.assert_array_equal(aware[1].image(1), made.frames[5])
    with pytest.raises(ValueError, match=r"CRC of the image is wrong.*episode_000001\.parquet .* row 2"):
        aware[1].image(2)


def test_images_are_decoded_smaller_on_request(tmp_path: Path) -> None:
    robot = Embodiment.load("franka_panda")
    rng = np.random.default_rng(0)
    data = fake_data(robot, rng, 3)
    smooth = np.kron(rng.integers(0, 256, (3, 8, 8, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8)
    data.images = {camera: [simplejpeg.encode_jpeg(image) for image in smooth] for camera in data.images}
    write_lerobot(tmp_path / "jpegs", robot, [data], images="image")
    small, full = (open_dataset(tmp_path / "jpegs", image_scale=scale) for scale in (32, None))
    assert small[0].image(1).shape == (32, 32, 3)
    assert full[0].image(1).shape == (128, 128, 3)
    mean = full[0].image(1).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(small[0].image(1) - mean).mean() < 4


def test_options_without_effect_on_videos_are_told(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    with pytest.warns(UserWarning, match=rf"verify_images has no effect on videos \({CAMERA}\)"):
        open_dataset(made.path, embodiment="franka_panda", verify_images=True)
    with pytest.warns(UserWarning, match=r"image_scale has no effect on videos"):
        open_dataset(made.path, embodiment="franka_panda", image_scale=8)


def test_image_column_without_bytes(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image")
    file = made.path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    at = table.column_names.index(CAMERA)
    values = table[CAMERA].to_pylist()
    png = values[1]["bytes"]
    (made.path / "kept.png").write_bytes(png)
    values[0], values[1] = {"bytes": None, "path": "gone.png"}, {"bytes": None, "path": "kept.png"}
    values[2], values[3] = {"bytes": png[:40], "path": ""}, None
    pq.write_table(table.set_column(at, CAMERA, pa.array(values)), file)
    store = open_lerobot(made.path)
    np.testing.assert_array_equal(store.image(CAMERA, 1, 1), made.frames[5])
    with pytest.raises(ValueError, match=r"gone\.png: image file is missing"):
        store.image(CAMERA, 1, 0)
    with pytest.raises(ValueError, match=r"cannot be decoded.*episode_000001\.parquet column '.*' row 2"):
        store.image(CAMERA, 1, 2)
    with pytest.raises(ValueError, match=r"no image embedded.*row 3"):
        store.image(CAMERA, 1, 3)


def test_unknown_task_index(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    file = made.path / "meta" / "tasks.jsonl"
    file.write_text(json.dumps({"task_index": 0, "task": "task of 0"}) + "\n")
    with pytest.raises(ValueError, match="episode 1 step 0: no task 1 in meta/tasks"):
        open_lerobot(made.path).texts("task", 1)


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"meta/info\.json: missing; wanted a LeRobot dataset folder"):
        open_lerobot(tmp_path)


def test_open_dataset_finds_the_entry(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    with pytest.raises(ValueError, match=r"by_hand: LeRobot dataset without vla_adapt\.json; name its robot"):
        open_dataset(made.path)
    usual = open_dataset(str(made.path), embodiment="franka_panda")
    assert set(usual[0].cameras) == {"top", "primary"}
    assert usual.entry.rate_hz == made.fps
    robot = Embodiment.load("franka_panda").model_copy(update={"name": "other"})
    assert open_dataset(made.path, embodiment=robot).embodiment.name == "other"
    own = DatasetEntry(
        embodiment="franka_panda", cameras={"primary": CAMERA}, state="observation.state", instruction="note"
    )
    assert open_dataset(made.path, entry=own)[0].instruction == "note 0"
    (made.path / "vla_adapt.json").write_text(
        Sidecar(entry=own, embodiment_yaml=robot.to_text()).model_dump_json()
    )
    assert open_dataset(made.path).embodiment.name == "other"
    assert open_dataset(made.path)[1].instruction == "note 0"
    with pytest.raises(ValueError, match=r"no field 'observation/state'; "):
        open_dataset(made.path, entry=own.model_copy(update={"state": ("observation/state",)}))
