"""What we write, tfds opens; and nothing half-written is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data, open_dataset
from vla_adapt.episodes.rlds.write import RldsWriter


@pytest.mark.slow
def test_tfds_reads_what_we_wrote(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = tfds.builder_from_directory(str(written))
    assert builder.info.splits["train"].num_shards > 1
    for split, episodes in recordings.items():
        ours = open_dataset(written, split=split)
        theirs = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
        assert len(theirs) == len(episodes)
        for i, (data, record) in enumerate(zip(episodes, theirs, strict=True)):
            steps = list(record["steps"])
            assert len(steps) == len(data)
            assert record["episode_metadata"]["seed"] == data.metadata["seed"]
            assert bool(record["episode_metadata"]["success"])
            assert {step["language_instruction"].decode() for step in steps} == {data.instruction}
            np.testing.assert_array_equal([step["action"] for step in steps], data.action)
            seen = [step["observation"] for step in steps]
            np.testing.assert_array_equal([one["state"] for one in seen], data.state)
            for key, values in data.extra.items():
                np.testing.assert_array_equal([one[key] for one in seen], values)
            for camera in data.images:
                np.testing.assert_array_equal(
                    [one[camera] for one in seen], [ours[i].image(t, camera) for t in range(len(data))]
                )
            assert [bool(step["is_first"]) for step in steps] == [t == 0 for t in range(len(data))]
            assert [bool(step["is_last"]) for step in steps] == [t == len(data) - 1 for t in range(len(data))]
            assert [float(step["reward"]) for step in steps] == [0.0] * (len(data) - 1) + [1.0]


def test_our_reader_gives_back_what_we_wrote(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    for split, episodes in recordings.items():
        dataset = open_dataset(written, split=split)
        assert dataset.embodiment.name == "franka_panda"
        for data, episode in zip(episodes, dataset, strict=True):
            np.testing.assert_array_equal(episode.action, data.action)
            np.testing.assert_array_equal(episode.state, data.state)
            assert episode.instruction == data.instruction
            assert episode.metadata == data.metadata
            for key, values in data.extra.items():
                np.testing.assert_array_equal(episode.extra(key), values)
                assert episode.extra(key).dtype == values.dtype
            difference = episode.image(1).astype(int) - np.asarray(data.images["primary"])[1]
            assert np.abs(difference).mean() < 60  # noise at JPEG 4:2:0; equality is tested on JPEG input


def test_jpeg_bytes_are_stored_untouched(tmp_path: Path, robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), 3)
    jpegs = [simplejpeg.encode_jpeg(image, quality=50, colorspace="RGB") for image in data.images["primary"]]
    data.images = {"primary": jpegs}
    with RldsWriter(tmp_path, "raw", robot) as writer:
        writer.add("train", data)
    shard = next(writer.path.glob("*.tfrecord-*")).read_bytes()
    assert all(jpeg in shard for jpeg in jpegs)
    expected = simplejpeg.decode_jpeg(jpegs[2], fastdct=True, fastupsample=False)
    np.testing.assert_array_equal(open_dataset(tmp_path)[0].image(2), expected)


def test_same_input_same_bytes(tmp_path: Path, robot: Embodiment) -> None:
    folders = []
    for run in ("a", "b"):
        with RldsWriter(tmp_path / run, "same", robot) as writer:
            writer.add("train", fake_data(robot, np.random.default_rng(3), 4))
        folders.append(writer.path)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def test_an_error_leaves_nothing(tmp_path: Path, robot: Embodiment) -> None:
    def record() -> None:
        with RldsWriter(tmp_path, "broken", robot) as writer:
            writer.add("train", fake_data(robot, np.random.default_rng(0), 3))
            raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        record()
    assert list((tmp_path / "broken").iterdir()) == []


def test_existing_dataset_is_kept_unless_overwrite(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "once", robot) as writer:
        writer.add("train", fake_data(robot, rng, 3))
    with (
        pytest.raises(ValueError, match="exists; choose another name or version"),
        RldsWriter(tmp_path, "once", robot),
    ):
        pass
    with RldsWriter(tmp_path, "once", robot, overwrite=True) as writer:
        writer.add("train", fake_data(robot, rng, 6))
    assert open_dataset(tmp_path).lengths.tolist() == [6]
    assert [path.name for path in writer.path.parent.iterdir()] == ["1.0.0"]


def test_refusals(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "strict", robot) as writer:
        writer.add("train", fake_data(robot, rng, 3))
        other = fake_data(robot, rng, 3, image_size=16)
        with pytest.raises(ValueError, match=r"'steps/observation/primary' is image uint8\[16, 16, 3\]"):
            writer.add("train", other)
        narrow = fake_data(robot, rng, 3)
        narrow.action = narrow.action[:, :5]
        with pytest.raises(ValueError, match="width 5"):
            writer.add("train", narrow)
        broken = fake_data(robot, rng, 3)
        broken.action = broken.action.copy()
        broken.action[1, 2] = np.nan
        with pytest.raises(ValueError, match="nan"):
            writer.add("train", broken)
        short = fake_data(robot, rng, 3)
        short.extra = {"x": np.zeros(2)}
        with pytest.raises(ValueError, match=r"'observation/x' has 2 steps, the action has 3"):
            writer.add("train", short)
        with pytest.raises(ValueError, match="episode without steps"):
            writer.add("train", fake_data(robot, rng, 0))
    assert open_dataset(tmp_path).lengths.tolist() == [3]


def test_dataset_info_counts(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    info = json.loads((written / "dataset_info.json").read_text())
    counts = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    assert counts == {split: len(episodes) for split, episodes in recordings.items()}
