"""RLDS to LeRobot and back: the same numbers, words, facts and pixels."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data, open_dataset
from vla_adapt.episodes.conversion.convert import convert_dataset
from vla_adapt.episodes.lerobot.lerobot_columns import encode_png
from vla_adapt.episodes.lerobot.lerobot_writer import LeRobotWriter
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.rlds.write import RldsWriter, _entry_of, _episode_fields
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec


def assert_same(one: MappedDataset, other: MappedDataset, pixels: bool = True) -> None:
    assert one.embodiment == other.embodiment
    assert one.lengths.tolist() == other.lengths.tolist()
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert (a.instruction, a.episode_id) == (b.instruction, b.episode_id)
        np.testing.assert_array_equal(a.action, b.action)
        np.testing.assert_array_equal(a.state, b.state)
        assert set(a.extra_keys) == set(b.extra_keys)
        for key in a.extra_keys:
            np.testing.assert_array_equal(a.extra(key), b.extra(key))
            assert a.extra(key).dtype == b.extra(key).dtype
        assert set(a.cameras) == set(b.cameras)
        for camera in a.cameras if pixels else ():
            for t in range(len(a)):
                np.testing.assert_array_equal(a.image(t, camera), b.image(t, camera))
        technical = {"episode_index", "length", "tasks"}
        facts = [{k: v for k, v in d.metadata(i).items() if k not in technical} for d in (one, other)]
        assert facts[0] == facts[1]


def assert_same_fields(one: MappedDataset, other: MappedDataset) -> None:
    """Every stored number and text field, mapped or not, is equal under the same name."""
    assert one.store.fields.keys() == other.store.fields.keys()
    for i in range(len(one)):
        for field, leaf in one.store.fields.items():
            if leaf.kind is Kind.NUMBER:
                got, wanted = other.store.numbers(field, i), one.store.numbers(field, i)
                np.testing.assert_array_equal(got, wanted)
                assert got.dtype == wanted.dtype
            elif leaf.kind is Kind.TEXT:
                assert list(other.store.texts(field, i)) == list(one.store.texts(field, i))


def test_rlds_to_lerobot_and_back(tmp_path: Path, written: Path) -> None:
    assert convert_dataset(written, tmp_path / "there", "lerobot").episodes == {"train": 5, "val": 2}
    assert convert_dataset(tmp_path / "there", tmp_path / "back", "rlds").left_behind == []
    source, there, back = (open_dataset(path) for path in (written, tmp_path / "there", tmp_path / "back"))
    assert_same(source, there)
    assert_same(source, back)
    assert_same_fields(source, back)
    assert there.store.rate_hz == 20  # type: ignore[attr-defined]
    assert set(there.store.fields) >= {"action", "observation.state", "observation.images.primary", "reward"}
    jpeg, kept, again = (
        data.store.encoded_image(field, 2, 1)  # type: ignore[attr-defined]
        for data, field in (
            (source, "observation/primary"),
            (there, "observation.images.primary"),
            (back, "observation/primary"),
        )
    )
    assert jpeg == kept == again


def test_other_splits_and_as_video(tmp_path: Path, written: Path) -> None:
    assert convert_dataset(
        written, tmp_path / "video", "lerobot", splits=["val"], images="video"
    ).episodes == {"val": 2}
    source, video = (open_dataset(path, split="val") for path in (written, tmp_path / "video"))
    assert_same(source, video, pixels=False)
    assert video.store.fields["observation.images.primary"].encoding == "video"
    assert video[1].image(1).shape == source[1].image(1).shape
    with pytest.raises(ValueError, match="no split 'train'"):
        open_dataset(tmp_path / "video")


@pytest.mark.parametrize(("version", "images"), [("v2.1", "video"), ("v3.0", "image")])
def test_lerobot_to_rlds_and_back(
    tmp_path: Path, lerobot_by_hand: Callable[..., Any], version: str, images: str
) -> None:
    made = lerobot_by_hand(version, images)
    convert_dataset(made.path, tmp_path / "there", "rlds", embodiment="franka_panda")
    convert_dataset(tmp_path / "there", tmp_path / "back", "lerobot")
    source = open_dataset(made.path, embodiment="franka_panda")
    there, back = open_dataset(tmp_path / "there"), open_dataset(tmp_path / "back")
    assert_same(source, there)
    assert_same(source, back)
    assert there.entry.rate_hz == back.entry.rate_hz == back.store.rate_hz == made.fps  # type: ignore[attr-defined]
    frames = [there[i].image(t) for i, length in enumerate(made.lengths) for t in range(length)]
    np.testing.assert_array_equal(frames, made.frames)
    assert [text for i in range(3) for text in there.store.texts("language_instruction", i)] == made.tasks
    assert [text for i in range(3) for text in back.store.texts("task", i)] == made.tasks
    assert there.store.numbers("is_first", 1).tolist() == [True] + [False] * 5
    assert there.store.numbers("next/done", 1).tolist() == [False] * 5 + [True]
    assert list(there.store.texts("note", 0)) == ["note 0", "note 1"] * 2
    assert "timestamp" not in there.store.fields


def test_uneven_timestamps_travel(tmp_path: Path, lerobot_by_hand: Callable[..., Any]) -> None:
    made = lerobot_by_hand("v2.1", "image", edit=lambda info: info.update(fps=9))
    convert_dataset(made.path, tmp_path / "there", "rlds", embodiment="franka_panda")
    convert_dataset(tmp_path / "there", tmp_path / "back", "lerobot")
    there, back = open_dataset(tmp_path / "there"), open_dataset(tmp_path / "back")
    np.testing.assert_array_equal(there.store.numbers("timestamp", 2), np.float32([0, 0.1, 0.2]))
    np.testing.assert_array_equal(back.store.numbers("recorded.timestamp", 2), np.float32([0, 0.1, 0.2]))


def test_transforms_and_quirks_are_carried_not_applied(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "source", robot) as writer:
        for length in (4, 6):
            writer.add("train", fake_data(robot, rng, length))
    entry = tmp_path / "entry.yaml"
    entry.write_text(
        "embodiment: franka_panda\n"
        "cameras: {primary: observation/primary, wrist: observation/wrist}\n"
        "image_quirks: {wrist: [bgr, flip_vertical]}\n"
        "action:\n"
        "  position: {field: action, columns: [2, 1, 0], scale: 0.5}\n"
        "  rotation: {field: action, columns: [3, 4, 5]}\n"
        "  gripper: {field: action, columns: [6], open: 1, closed: -1}\n"
        "state: observation/state\n"
        "extra: {rewards: reward}\n"
        "instruction_text: push the button\n"
        "transforms: [drop_first_step]\n"
    )
    convert_dataset(tmp_path / "source", tmp_path / "there", "lerobot", entry=str(entry))
    convert_dataset(tmp_path / "there", tmp_path / "back", "rlds")
    source = open_dataset(tmp_path / "source", entry=entry)
    assert source.lengths.tolist() == [3, 5]
    there, back = open_dataset(tmp_path / "there"), open_dataset(tmp_path / "back")
    assert_same(source, there)
    assert_same(source, back)
    assert there.store.lengths.tolist() == [4, 6]
    assert there.entry.transforms == ("drop_first_step",)
    assert there[0].instruction == "push the button"


def test_refusals_leave_nothing(
    tmp_path: Path, written: Path, recordings: dict[str, list[EpisodeData]]
) -> None:
    with pytest.raises(ValueError, match="RLDS holds no video; use images='image'"):
        convert_dataset(written, tmp_path / "new", "rlds", images="video")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for to in ("rlds", "lerobot"):
        with pytest.raises(ValueError, match="full exists; choose another folder"):
            convert_dataset(written, tmp_path / "full", to)
    shard = min(written.glob("*-train.tfrecord-*"))
    data = bytearray(shard.read_bytes())
    at = data.rfind(b"\xff\xd8\xff")
    data[at : at + 3] = b"zzz"
    shard.write_bytes(data)
    for to in ("rlds", "lerobot"):
        convert = (
            "written: episode train/.*: cannot be converted: .*image cannot be decoded: starts with 7a7a7a"
        )
        source = tmp_path / "data" / "written"
        with pytest.raises(ValueError, match="CRC|" + convert):
            convert_dataset(source, tmp_path / "new", to)
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["bridge_dataset", "bridge_orig"])
def test_real_bridge_episodes_there_and_back(shared_dir: Path, tmp_path: Path, entry: str) -> None:
    folder = shared_dir / "data" / "bridge_dataset"
    convert_dataset(folder, tmp_path / "there", "lerobot", entry=entry)
    convert_dataset(tmp_path / "there", tmp_path / "back", "rlds")
    source = open_dataset(folder, entry=entry, cache_dir=tmp_path / "cache")
    there, back = open_dataset(tmp_path / "there"), open_dataset(tmp_path / "back")
    assert_same(source, there)
    assert_same(source, back)
    assert set(back.store.fields) >= set(source.store.fields)
    for field, leaf in source.store.fields.items():
        if leaf.kind is Kind.NUMBER:
            np.testing.assert_array_equal(back.store.column(field), source.store.column(field))


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
def test_a_full_disk_names_the_folder_and_leaves_nothing(
    written: Path, tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = {"rlds": RldsWriter, "lerobot": LeRobotWriter}[to]
    monkeypatch.setattr(writer, "add_fields" if to == "rlds" else "add", full)
    target = tmp_path / "converted"
    with pytest.raises(ValueError, match=rf"{target} cannot be written: No space left on device"):
        convert_dataset(written, target, to)
    assert not target.exists()


@pytest.mark.slow
def test_tfds_opens_what_came_from_lerobot(tmp_path: Path, lerobot_by_hand: Callable[..., Any]) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    made = lerobot_by_hand("v3.0", "video")
    convert_dataset(made.path, tmp_path / "there", "rlds", embodiment="franka_panda")
    builder = tfds.builder_from_directory(str(tmp_path / "there" / "1.0.0"))
    records = list(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False)))
    steps = [step for record in records for step in record["steps"]]
    np.testing.assert_array_equal([step["action"] for step in steps], made.action)
    np.testing.assert_array_equal([step["observation"]["state"] for step in steps], made.state)
    np.testing.assert_array_equal([step["observation"]["top"] for step in steps], made.frames)
    assert [step["language_instruction"].decode() for step in steps] == made.tasks
    assert [bool(record["episode_metadata"]["success"]) for record in records] == [False, True, True]


@pytest.mark.slow
def test_tfds_opens_all_splits_episodes_without_steps_and_goal_images(
    tmp_path: Path, robot: Embodiment
) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    goals = rng.integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    lengths = {"train": (0, 3, 0), "val": (2,)}
    with RldsWriter(tmp_path, "source", robot) as writer:
        for split, length in ((split, length) for split, sizes in lengths.items() for length in sizes):
            data = fake_data(robot, rng, max(length, 1))
            fields = {
                key: (leaf, values[:length] if key.startswith("steps/") else values)
                for key, (leaf, values) in _episode_fields(data, robot, "here").items()
            }
            goal = LeafSpec(Kind.IMAGE, (4, 6, 3), "uint8", "png"), [encode_png(goals[length])]
            writer.add_fields(split, {**fields, "episode_metadata/goal": goal}, _entry_of(data, robot))
    convert_dataset(writer.path, tmp_path / "there", "rlds")
    builder = tfds.builder_from_directory(str(tmp_path / "there" / "1.0.0"))
    assert builder.name == "source"
    for split, sizes in lengths.items():
        records = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
        assert [len(list(record["steps"])) for record in records] == list(sizes)
        for record, length in zip(records, sizes, strict=True):
            np.testing.assert_array_equal(record["episode_metadata"]["goal"], goals[length])


def test_instructions_that_change_stay_with_their_steps(tmp_path: Path, robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), length=6)
    data.instruction, data.instruction_changes = "pick it", [(2, "place it"), (5, "pick it")]
    with RldsWriter(tmp_path / "data", "changing", robot) as writer:
        writer.add("train", data)
    convert_dataset(writer.path, tmp_path / "there", "lerobot")
    convert_dataset(tmp_path / "there", tmp_path / "back", "rlds")
    for path in (writer.path, tmp_path / "there", tmp_path / "back"):
        episode = open_dataset(path)[0]
        assert [episode.instruction_at(t) for t in range(6)] == data.step_instructions


def write_with(
    folder: Path, robot: Embodiment, lengths: tuple[int, ...], more: Callable[[int, int], dict[str, Any]]
) -> Path:
    """Fake episodes with the fields that `more(episode, steps)` adds or replaces."""
    rng = np.random.default_rng(0)
    with RldsWriter(folder, "odd", robot) as writer:
        for number, steps in enumerate(lengths):
            data = fake_data(robot, rng, steps)
            fields = {**_episode_fields(data, robot, "here"), **more(number, steps)}
            writer.add_fields("train", fields, _entry_of(data, robot))
    return writer.path


def test_facts_of_any_shape_and_name_and_mixed_encodings(tmp_path: Path, robot: Embodiment) -> None:
    def more(number: int, steps: int) -> dict[str, Any]:
        matrix = np.array([[[1, 2], [3, number]]], np.int32)
        png = encode_png(np.full((8, 8, 3), number, np.uint8))
        jpeg = simplejpeg.encode_jpeg(np.full((8, 8, 3), 9, np.uint8))
        return {
            "episode_metadata/matrix": (LeafSpec(Kind.NUMBER, (2, 2), "int32"), matrix),
            "episode_metadata/length": (LeafSpec(Kind.TEXT), [b"short"]),
            "episode_metadata/recorded_as": (LeafSpec(Kind.TEXT), [b"elsewhere"]),
            "steps/observation/side": (
                LeafSpec(Kind.IMAGE, (8, 8, 3), "uint8", "png"),
                [jpeg if number else png] * steps,
            ),
            "steps/nothing": (LeafSpec(Kind.NUMBER, (0,), "float32"), np.zeros((steps, 0), np.float32)),
        }

    source = write_with(tmp_path, robot, (3, 2), more)
    with pytest.warns(UserWarning, match="field 'nothing': lerobot cannot hold"):
        convert_dataset(source, tmp_path / "there", "lerobot")
    assert convert_dataset(tmp_path / "there", tmp_path / "back", "rlds").left_behind == []
    before, there, back = (open_dataset(path) for path in (source, tmp_path / "there", tmp_path / "back"))
    for number in range(2):
        names = [data.stable_name(number) for data in (before, there, back)]
        assert names == [names[0]] * 3
        facts = dict(back.metadata(number))
        assert facts["matrix"] == [[1, 2], [3, number]]
        assert (facts["length"], facts["recorded_recorded_as"]) == ("short", "elsewhere")
        for data, field in ((there, "observation.images.side"), (back, "observation/side")):
            want = before.store.encoded_image("observation/side", number, 1)  # type: ignore[attr-defined]
            assert data.store.encoded_image(field, number, 1) == want  # type: ignore[attr-defined]
    assert back.store.fact_leaves["matrix"].dtype == "int32"  # type: ignore[attr-defined]


def test_images_of_varying_size_stay_readable_or_are_refused(tmp_path: Path, robot: Embodiment) -> None:
    def more(number: int, steps: int) -> dict[str, Any]:
        pngs = [encode_png(np.zeros((8 + t, 8, 3), np.uint8)) for t in range(steps)]
        return {"steps/observation/side": (LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8", "png"), pngs)}

    source = write_with(tmp_path, robot, (3, 1), more)
    convert_dataset(source, tmp_path / "there", "rlds")
    there = open_dataset(tmp_path / "there").store
    assert [there.image("observation/side", 0, t).shape for t in range(3)] == [
        (8 + t, 8, 3) for t in range(3)
    ]
    with pytest.raises(ValueError, match=r"side': image is \[9, 8, 3\], the schema says \[8, 8, 3\]"):
        convert_dataset(source, tmp_path / "lerobot", "lerobot")
    assert not (tmp_path / "lerobot").exists()
