"""What we write as LeRobot reads back the same; statistics are right; nothing half-written is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data, open_dataset
from vla_adapt.episodes.lerobot import lerobot_writer
from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot


def smooth_episode(robot: Embodiment, rng: np.random.Generator, length: int) -> EpisodeData:
    """A recording with images that video keeps: a gradient whose brightness tells the step."""
    data = fake_data(robot, rng, length)
    ramp = np.linspace(0, 120, 64)[None, :, None] + np.zeros((48, 1, 3))
    images = np.stack([ramp + 8 * t + 3 for t in range(length)]).astype(np.uint8)
    data.images = dict.fromkeys(data.images, images)
    return data


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_images_are_kept_exactly(
    tmp_path: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]
) -> None:
    episodes = recordings["train"]
    assert write_lerobot(tmp_path / "new", robot, iter(episodes), images="image") == len(episodes)
    dataset = open_dataset(tmp_path / "new")
    assert dataset.embodiment == robot
    assert len(dataset) == len(episodes)
    for data, episode in zip(episodes, dataset, strict=True):
        np.testing.assert_array_equal(episode.action, data.action)
        np.testing.assert_array_equal(episode.state, data.state)
        assert episode.instruction == data.instruction
        assert data.metadata.items() <= episode.metadata.items()
        assert set(episode.extra_keys) == set(data.extra)
        for key, values in data.extra.items():
            np.testing.assert_array_equal(episode.extra(key), values)
            assert episode.extra(key).dtype == values.dtype
        assert set(episode.cameras) == set(data.images)
        for camera, images in data.images.items():
            np.testing.assert_array_equal([episode.image(t, camera) for t in range(len(data))], images)


def test_a_vector_of_one_is_not_a_plain_number(tmp_path: Path, robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 3)
    data.extra = {"one": np.ones((3, 1), np.float32), "plain": np.arange(3), "grid": np.zeros((3, 2, 5))}
    write_lerobot(tmp_path / "new", robot, [data], images="image")
    episode = open_dataset(tmp_path / "new")[0]
    assert [episode.extra(key).shape for key in ("one", "plain", "grid")] == [(3, 1), (3,), (3, 2, 5)]


def test_jpeg_bytes_are_kept_untouched(tmp_path: Path, robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 3)
    jpegs = [simplejpeg.encode_jpeg(image, quality=50, colorspace="RGB") for image in data.images["primary"]]
    data.images = {"primary": jpegs}
    write_lerobot(tmp_path / "new", robot, [data], images="image")
    dataset = open_dataset(tmp_path / "new")
    assert dataset.store.encoded_image("observation.images.primary", 0, 2) == jpegs[2]  # type: ignore[attr-defined]
    expected = simplejpeg.decode_jpeg(jpegs[2], fastdct=True, fastupsample=False)
    np.testing.assert_array_equal(dataset[0].image(2), expected)


@pytest.mark.parametrize("megabytes", [100, 0])
def test_video_frames_and_files(
    tmp_path: Path, robot: Embodiment, megabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("DATA_MB", "VIDEO_MB"):
        monkeypatch.setattr(lerobot_writer, limit, megabytes)
    monkeypatch.setattr(lerobot_writer, "CHUNK_FILES", 2)
    rng = np.random.default_rng(0)
    episodes = [smooth_episode(robot, rng, length) for length in (5, 8, 3, 6)]
    write_lerobot(tmp_path / "new", robot, episodes, fps=12.5)
    dataset = open_dataset(tmp_path / "new")
    for data, episode in zip(episodes, dataset, strict=True):
        np.testing.assert_array_equal(episode.action, data.action)
        for t in reversed(range(len(data))):
            error = episode.image(t).astype(int) - np.asarray(data.images["primary"])[t]
            assert np.abs(error).mean() < 3  # the next frame is 8 away
    names = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.mp4"))
    places = ["chunk-000/file-000"]
    if not megabytes:
        places += ["chunk-000/file-001", "chunk-001/file-000", "chunk-001/file-001"]
    cameras = sorted(f"videos/observation.images.{camera}" for camera in robot.cameras)
    assert names == [f"{camera}/{place}.mp4" for camera in cameras for place in places]
    assert sorted(p.stem for p in (tmp_path / "new" / "data").rglob("*.parquet")) == sorted(
        place.split("/")[1] for place in places
    )
    assert read_json(tmp_path / "new" / "meta" / "info.json")["fps"] == 12.5


def test_meta_is_what_the_format_says(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    episodes = [smooth_episode(robot, rng, length) for length in (5, 8)]
    episodes[1].instruction = episodes[0].instruction
    write_lerobot(tmp_path / "new", robot, episodes)
    info = read_json(tmp_path / "new" / "meta" / "info.json")
    counts = {key: info[key] for key in ("total_episodes", "total_frames", "total_tasks", "fps", "splits")}
    assert counts == {
        "total_episodes": 2, "total_frames": 13, "total_tasks": 1, "fps": 20, "splits": {"train": "0:2"}
    }  # fmt: skip
    camera = info["features"]["observation.images.primary"]
    assert (camera["dtype"], camera["shape"]) == ("video", [48, 64, 3])
    assert info["features"]["action"]["shape"] == [7]
    assert info["features"]["frame_index"] == {"dtype": "int64", "shape": [1], "names": None}
    table = pq.read_table(tmp_path / "new" / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    rows = table.to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 5]
    assert [row["dataset_to_index"] for row in rows] == [5, 13]
    stem = "videos/observation.images.primary"
    assert [row[f"{stem}/from_timestamp"] for row in rows] == [0.0, 0.25]
    assert [row[f"{stem}/to_timestamp"] for row in rows] == [0.25, 0.65]
    assert rows[1]["tasks"] == [episodes[0].instruction]
    assert rows[1]["metadata/seed"] == episodes[1].metadata["seed"]
    data = pq.ParquetFile(tmp_path / "new" / "data" / "chunk-000" / "file-000.parquet")
    assert data.num_row_groups == 2
    assert [f"observation.images.{c}" in data.schema_arrow.names for c in robot.cameras] == [False, False]


def test_statistics_of_episodes_and_of_the_dataset(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    episodes = [smooth_episode(robot, rng, length) for length in (5, 8, 11)]
    write_lerobot(tmp_path / "new", robot, episodes, images="image")
    stats = read_json(tmp_path / "new" / "meta" / "stats.json")
    actions = np.concatenate([data.action for data in episodes]).astype(np.float64)
    row = pq.read_table(tmp_path / "new" / "meta" / "episodes").to_pylist()[1]
    for values, got in (
        (actions, stats["action"]),
        (actions[5:13], {key[13:]: row[key] for key in row if key.startswith("stats/action/")}),
    ):
        assert got["count"] == [len(values)]
        wanted = {
            "min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0),
            **{f"q{q:02d}": np.percentile(values, q, axis=0) for q in (1, 10, 50, 90, 99)},
        }  # fmt: skip
        assert got.keys() - {"count"} == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(got[key], value, rtol=1e-5, atol=1e-7)
    image = stats["observation.images.primary"]
    pixels = np.concatenate([np.asarray(data.images["primary"]) for data in episodes]) / 255
    np.testing.assert_allclose(image["mean"], pixels.mean((0, 1, 2)).reshape(3, 1, 1), atol=1e-6)
    assert np.shape(image["q50"]) == (3, 1, 1)
    assert image["count"] == [24]
    assert stats["timestamp"]["max"] == [pytest.approx(0.5)]


def test_an_error_leaves_nothing_and_an_old_dataset_stays(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    write_lerobot(tmp_path / "new", robot, [fake_data(robot, rng, 3)], images="image")
    with pytest.raises(ValueError, match="exists; choose another folder, or remove it"):
        write_lerobot(tmp_path / "new", robot, [fake_data(robot, rng, 3)])

    def interrupted() -> Any:
        yield fake_data(robot, rng, 4)
        raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        write_lerobot(tmp_path / "new", robot, interrupted(), overwrite=True)
    assert open_dataset(tmp_path / "new").lengths.tolist() == [3]
    write_lerobot(tmp_path / "new", robot, [fake_data(robot, rng, 6)], overwrite=True)
    assert open_dataset(tmp_path / "new").lengths.tolist() == [6]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_refusals(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    good = fake_data(robot, rng, 3)

    def refused(second: EpisodeData, match: str, images: Any = "image") -> None:
        with pytest.raises(ValueError, match=match):
            write_lerobot(tmp_path / "new", robot, [good, second], images=images)
        assert not list(tmp_path.iterdir())

    refused(
        fake_data(robot, rng, 3, image_size=16), r"episode 1: '.*images\.primary' is image uint8\[16, 16, 3\]"
    )
    narrow = fake_data(robot, rng, 3)
    narrow.action = narrow.action[:, :5]
    refused(narrow, "width 5")
    short = fake_data(robot, rng, 3)
    short.images = {camera: np.asarray(images)[:2] for camera, images in short.images.items()}
    refused(short, r"'observation\.images\.primary' has 2 steps, the task has 3")
    broken = fake_data(robot, rng, 3)
    broken.images = {camera: [b"nothing"] * 3 for camera in broken.images}
    refused(broken, "image cannot be decoded: starts with 6e6f")
    refused(fake_data(robot, rng, 0), "episode 1: no steps")
    other = fake_data(robot, rng, 3)
    other.metadata = {"seed": "many", "success": True}
    refused(other, "facts of episodes 0..1 are not of the first one's kind")
    good = fake_data(robot, rng, 3, image_size=33)
    refused(fake_data(robot, rng, 3, image_size=33), "33 x 33, video needs even sides", images="video")
    with pytest.raises(ValueError, match="no episode was given"):
        write_lerobot(tmp_path / "new", robot, [])
