"""Reading RLDS: identical to tfds on real data, any order, and clear refusals."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, EpisodeData, open_dataset
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.rlds.example_proto import bytes_offsets, encode_example, read_numbers, scan_example
from vla_adapt.episodes.rlds.rlds_store import RldsStore
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.rlds.tfrecord import frame, read_records

ALL_CAMERAS = {f"camera_{i}": f"observation/image_{i}" for i in range(4)}


def bridge_entry() -> DatasetEntry:
    return DatasetEntry(
        embodiment="widowx",
        cameras={"primary": "observation/image_0", **ALL_CAMERAS},
        extra={"language_embedding": "language_embedding", "is_last": "is_last", "reward": "reward"},
    )


@pytest.mark.slow
def test_every_bridge_episode_reads_as_tfds_does(shared_dir: Path, tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    folder = shared_dir / "data" / "bridge_dataset"
    builder = tfds.builder_from_directory(str(folder / "1.0.0"))
    episodes = steps_seen = 0
    for split in builder.info.splits:
        mapped = open_dataset(folder, split=split, entry=bridge_entry(), cache_dir=tmp_path)
        default = open_dataset(folder, split=split, cache_dir=tmp_path)
        theirs = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        for ours, plain, record in zip(mapped, default, theirs, strict=True):
            steps = list(record["steps"])
            assert len(ours) == len(plain) == len(steps)
            for array, key in ((ours.action, "action"), (plain.action, "action")):
                np.testing.assert_array_equal(array, [step[key] for step in steps])
                assert array.dtype == steps[0][key].dtype
            np.testing.assert_array_equal(ours.state, [step["observation"]["state"] for step in steps])
            for key in ours.extra_keys:
                np.testing.assert_array_equal(ours.extra(key), [step[key] for step in steps])
            assert {step["language_instruction"].decode() for step in steps} == {ours.instruction}
            theirs_metadata = record["episode_metadata"]
            assert ours.metadata["file_path"] == theirs_metadata["file_path"].decode()
            assert ours.metadata["episode_id"] == theirs_metadata["episode_id"]
            for t, step in enumerate(steps):
                for camera, field in ALL_CAMERAS.items():
                    wanted = step["observation"][field.split("/")[1]]
                    np.testing.assert_array_equal(ours.image(t, camera), wanted)
                np.testing.assert_array_equal(plain.image(t), step["observation"]["image_0"])
                steps_seen += 1
            episodes += 1
    assert (episodes, steps_seen) == (50, 500)


def test_any_order_gives_the_same(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    dataset = open_dataset(written)
    places = [(i, t) for i in range(len(dataset)) for t in range(int(dataset.lengths[i]))]
    forward = [dataset[i].image(t, "wrist") for i, t in places]
    other = open_dataset(written)
    for k in np.random.default_rng(0).permutation(len(places)):
        i, t = places[k]
        np.testing.assert_array_equal(other[i].image(t, "wrist"), forward[k])
        np.testing.assert_array_equal(other[i].action[t], recordings["train"][i].action[t])
    np.testing.assert_array_equal(other[-1].action, recordings["train"][-1].action)
    with pytest.raises(IndexError, match="episode 5 of 5"):
        other[5]


def test_pickled_and_forked_readers_agree(written: Path) -> None:
    dataset = open_dataset(written)
    wanted = dataset[3].image(2)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[3].image(2), wanted)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got in pool.map(_image_of, [dataset] * 4):
            np.testing.assert_array_equal(got, wanted)


def _image_of(dataset: MappedDataset) -> np.ndarray:
    return dataset[3].image(2)


def test_numbers_that_were_read_leave_memory(written: Path) -> None:
    """They would stay as long as the dataset is open, and grow with it."""
    dataset = open_dataset(written)
    opened = mapped_numbers(dataset)
    first = [dataset[i].action.copy() for i in range(len(dataset))]
    assert mapped_numbers(dataset) == opened == 0
    store = dataset.store
    assert isinstance(store, RldsStore)
    column = store.column("action")
    assert column.sum()
    assert mapped_numbers(dataset) > 0
    store.release()
    assert mapped_numbers(dataset) == 0
    np.testing.assert_array_equal(
        column, np.concatenate([store.numbers("action", i) for i in range(len(dataset))])
    )
    for i, action in enumerate(first):
        np.testing.assert_array_equal(dataset[i].action, action)


def mapped_numbers(dataset: MappedDataset) -> int:
    """Bytes of the index's number columns that are in this process's memory."""
    store = dataset.store
    assert isinstance(store, RldsStore)
    manifest = json.loads((store._index.folder / "manifest.json").read_text())
    files = [file for name, file in manifest["arrays"].items() if name.endswith(":value")]
    assert files
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0][-1] != ":":
            ours = any(line.endswith(str(store._index.folder / file)) for file in files)
        elif ours and line.startswith("Rss:"):
            resident += 1024 * int(line.split()[1])
    return resident


def test_missing_fields_list_what_there_is(written: Path) -> None:
    entry = DatasetEntry(embodiment="franka_panda", cameras={"primary": "observation/front"})
    with pytest.raises(
        ValueError, match=r"no field 'observation/front'; image fields: observation/primary, obs"
    ):
        open_dataset(written, entry=entry)
    entry = DatasetEntry(embodiment="franka_panda", cameras={"primary": "observation/primary"}, action="act")
    with pytest.raises(ValueError, match=r"no field 'act'; number fields: action, discount"):
        open_dataset(written, entry=entry)
    entry = entry.model_copy(update={"action": ("action",), "instruction": "task"})
    with pytest.raises(ValueError, match=r"no field 'task'; text fields: language_instruction"):
        open_dataset(written, entry=entry)


def test_a_dataset_may_lack_a_camera_that_the_robot_requires(written: Path) -> None:
    entry = DatasetEntry(embodiment="franka_panda", cameras={"wrist": "observation/wrist"})
    assert Embodiment.load("franka_panda").cameras["primary"].required
    episode = open_dataset(written, entry=entry)[0]
    assert episode.image(0, "wrist").shape == (32, 32, 3)
    with pytest.raises(ValueError, match="no camera 'primary'; it has wrist"):
        episode.image(0)


def test_wrong_width_names_both(written: Path) -> None:
    with pytest.raises(
        ValueError, match=r"action \(action\) has width 7, embodiment bimanual_panda wants 14"
    ):
        open_dataset(written, embodiment="bimanual_panda")
    entry = DatasetEntry(
        embodiment="franka_panda", cameras={"primary": "observation/primary"}, state="observation/object_pose"
    )
    with pytest.raises(ValueError, match=r"state \(observation/object_pose\) has width 3"):
        open_dataset(written, entry=entry)


def rewrite(folder: Path, record_number: int, change) -> Path:
    """Apply `change` to the features of one record of the first train shard, with right CRCs."""
    path = sorted(folder.glob("*-train.tfrecord-*"))[0]
    out = []
    for number, (_, record) in enumerate(read_records(path)):
        if number == record_number:
            spans = scan_example(record)
            features = {}
            for key, span in spans.items():
                if span.kind == 1:
                    features[key] = _strings(record, span)
                else:
                    features[key] = read_numbers(record, span)
            change(features)
            record = encode_example(features)
        out.append(frame(record))
    path.write_bytes(b"".join(out))
    return path


def _strings(record: bytes, span) -> list[bytes]:
    return [record[at : at + size] for at, size in bytes_offsets(record, span)]


def test_nan_names_dataset_episode_and_step(written: Path) -> None:
    def spoil(features) -> None:
        action = features["steps/action"].copy()
        action[7 * 3 + 2] = np.nan
        features["steps/action"] = action

    path = rewrite(written, 0, spoil)
    place = (
        rf"written: episode train/0 step 3: action field 'action' is not finite .* in .*{path.name} episode"
    )
    with pytest.raises(ValueError, match=place):
        open_dataset(written)
    assert np.isnan(open_dataset(written, check=False)[0].action[3, 2])


def test_record_without_a_field_names_record_and_field(written: Path) -> None:
    path = rewrite(written, 0, lambda features: features.pop("steps/observation/state"))
    with pytest.raises(
        ValueError, match=rf"{path.name}: record 0 .*no field 'steps/observation/state'; it has"
    ):
        open_dataset(written)


def test_undecodable_image_names_episode_step_and_camera(written: Path) -> None:
    def spoil(features) -> None:
        features["steps/observation/primary"][2] = b"\x00" * 50

    rewrite(written, 0, spoil)
    dataset = open_dataset(written)
    assert dataset[0].image(1).shape == (32, 32, 3)
    with pytest.raises(
        ValueError, match=r"written: episode train/0 step 2 camera 'primary': image cannot be"
    ):
        dataset[0].image(2)


def test_half_an_image_is_refused(written: Path) -> None:
    def spoil(features) -> None:
        features["steps/observation/primary"][2] = features["steps/observation/primary"][2][:400]

    rewrite(written, 0, spoil)
    with pytest.raises(ValueError, match=r"step 2 camera 'primary': image cannot be decoded"):
        open_dataset(written)[0].image(2)


def test_several_fields_make_one_action(written: Path, tmp_path: Path) -> None:
    robot = Embodiment.load("franka_panda")
    entry = DatasetEntry(
        embodiment=robot.name,
        cameras={"primary": "observation/primary"},
        action=("observation/object_pose", "observation/object_pose", "reward"),
        state=(),
    )
    episode = open_dataset(written, entry=entry)[1]
    pose = open_dataset(written)[1].extra("object_pose")
    np.testing.assert_array_equal(episode.action[:, :6], np.concatenate([pose, pose], axis=1))
    assert episode.action[-1, 6] == 1.0
    assert episode.state is None


def tensor(dtype: str, *shape: int, encoding: str = "none", **more: object) -> dict[str, object]:
    dimensions = {"dimensions": [str(size) for size in shape]}
    return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": encoding, **more}}


def sequence(feature: dict[str, object]) -> dict[str, object]:
    return {"sequence": {"feature": feature, "length": "-1"}}


def features_dict(**features: object) -> dict[str, object]:
    return {"featuresDict": {"features": features}}


def gray_png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def rich(tmp_path: Path) -> RldsStore:
    """Two episodes of two and one steps with ragged, encoded and episode-level fields, laid out by hand."""
    image = {"image": {"shape": {"dimensions": ["2", "3", "1"]}, "dtype": "uint8", "encodingFormat": "png"}}
    tree = features_dict(
        steps=sequence(
            features_dict(
                boxes=sequence(tensor("float32", 4)),
                words=tensor("string", 2),
                views=sequence(image),
                state=tensor("float64", 2, encoding="zlib"),
                action=tensor("float32", 1),
            )
        ),
        episode_metadata=features_dict(
            tags=sequence({"text": {}}), cover=image, seed=tensor("int64", optional=True), name={"text": {}}
        ),
        table=tensor("float32", 100),
    )
    common = {"table": np.arange(100, dtype=np.float32), "episode_metadata/cover": [gray_png(9)]}
    first = {
        "steps/boxes/ragged_flat_values": np.arange(12, dtype=np.float32),
        "steps/boxes/ragged_row_lengths_0": np.array([1, 2]),
        "steps/words": [b"a", b"b", b"c", b"d"],
        "steps/views/ragged_flat_values": [gray_png(1), gray_png(2), gray_png(3)],
        "steps/views/ragged_row_lengths_0": np.array([2, 1]),
        "steps/state": [zlib.compress(np.array(row).tobytes()) for row in ([0.1, 0.2], [0.3, 1e-300])],
        "steps/action": np.array([5, 6], np.float32),
        "episode_metadata/tags": [b"x", b"y"],
        "episode_metadata/seed": np.array([41]),
        "episode_metadata/name": [b"one"],
    }
    second = {
        "steps/boxes/ragged_flat_values": np.zeros(0, np.float32),
        "steps/boxes/ragged_row_lengths_0": np.array([0]),
        "steps/words": [b"e", b"f"],
        "steps/views/ragged_flat_values": [],
        "steps/views/ragged_row_lengths_0": np.array([0]),
        "steps/state": [zlib.compress(np.array([3.0, 4.0]).tobytes())],
        "steps/action": np.array([7], np.float32),
        "episode_metadata/name": [b"two"],
    }
    folder = tmp_path / "rich" / "1.0.0"
    folder.mkdir(parents=True)
    records = b"".join(frame(encode_example({**common, **episode})) for episode in (first, second))
    (folder / "rich-train.tfrecord-00000-of-00001").write_bytes(records)
    (folder / "features.json").write_text(json.dumps(tree))
    info = {"name": "rich", "splits": [{"name": "train", "shardLengths": ["2"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return RldsStore.open(RldsFolder.open(folder), "train")


def test_ragged_and_encoded_step_fields(rich: RldsStore) -> None:
    assert rich.lengths.tolist() == [2, 1]
    assert [len(boxes) for boxes in rich.numbers("boxes", 0)] == [1, 2]
    assert rich.numbers("boxes", 0)[1].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert rich.numbers("boxes", 1)[0].shape == (0, 4)
    assert [list(words) for words in rich.texts("words", 0)] == [["a", "b"], ["c", "d"]]
    assert [view[0, 0, 0] for view in rich.images("views", 0, 0)] == [1, 2]
    assert rich.images("views", 1, 0) == []
    assert rich.column("state").tolist() == [[0.1, 0.2], [0.3, 1e-300], [3.0, 4.0]]
    assert rich.numbers("action", 1).tolist() == [[7.0]]


def test_episode_level_fields(rich: RldsStore) -> None:
    facts = rich.metadata(0)
    assert sorted(facts) == ["cover", "name", "seed", "table", "tags"]
    assert (facts["name"], list(facts["tags"]), facts["seed"]) == ("one", ["x", "y"], 41)
    assert facts["cover"].tolist() == [[[9]] * 3] * 2
    assert facts["table"] == list(range(100))
    later = rich.metadata(1)
    assert (later["name"], list(later["tags"]), later["seed"]) == ("two", [], None)


def test_store_refusals(rich: RldsStore) -> None:
    with pytest.raises(ValueError, match=r"rich: no field 'wrods'; did you mean 'words'\?"):
        rich.texts("wrods", 0)
    with pytest.raises(ValueError, match=r"rich: field 'words' is ragged string.*, wanted number"):
        rich.numbers("words", 0)
    with pytest.raises(ValueError, match="field 'views' holds several images a step; read it by images"):
        rich.image("views", 0, 0)
    with pytest.raises(ValueError, match=r"field 'boxes' is ragged float32.*, wanted numbers of one size"):
        rich.column("boxes")
    with pytest.raises(ValueError, match=r"00000-of-00001 episode train/1: step 1 asked, it has 1"):
        rich.images("views", 1, 1)


def test_encoded_images_are_the_stored_bytes(written: Path) -> None:
    dataset = open_dataset(written)
    store = dataset.store
    assert isinstance(store, RldsStore)
    data = store.encoded_image("observation/wrist", 2, 1)
    assert data[:2] == b"\xff\xd8"
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(data, fastdct=True), dataset[2].image(1, "wrist"))
    with pytest.raises(ValueError, match="step 3 asked, it has 3"):
        store.encoded_image("observation/wrist", 2, 3)


def test_reduced_scale_is_opt_in(written: Path) -> None:
    assert open_dataset(written)[0].image(0).shape == (32, 32, 3)
    assert open_dataset(written, image_scale=15)[0].image(0).shape == (16, 16, 3)
