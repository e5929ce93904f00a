"""Damaged RLDS data: an error that names it, or left out, counted and told."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes import EpisodeData, open_dataset
from vla_adapt.episodes.rlds import index
from vla_adapt.episodes.rlds.rlds_store import RldsStore
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.rlds.tfrecord import OVERHEAD, frame
from vla_adapt.episodes.storage.damage import DamageLog, check_on_error

Recordings = dict[str, list[EpisodeData]]


def test_log_raises_or_notes() -> None:
    with pytest.raises(ValueError, match="a: broken"):
        DamageLog("error").report("a: broken")
    log = DamageLog("skip")
    log.report("a: broken")
    log.report("b: cut", 3)
    assert log.notes == [("a: broken", 1), ("b: cut", 3)]


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-train.tfrecord-*"))


def record_starts(path: Path) -> list[int]:
    """Where each record's frame begins, by following the lengths."""
    data, starts, at = path.read_bytes(), [], 0
    while at < len(data):
        starts.append(at)
        at += struct.unpack_from("<Q", data, at)[0] + OVERHEAD
    return starts


def change_record(path: Path, start: int, old: bytes, new: bytes) -> None:
    """Replace bytes of the record whose frame begins at `start`, its CRCs made right again."""
    data = path.read_bytes()
    end = start + struct.unpack_from("<Q", data, start)[0] + OVERHEAD
    payload = data[start + 12 : end - 4]
    assert payload.count(old) == 1
    path.write_bytes(data[:start] + frame(payload.replace(old, new)) + data[end:])


def open_skipping(folder: Path) -> RldsStore:
    with pytest.warns(UserWarning, match="skipped"):
        return RldsStore.open(RldsFolder.open(folder), "train", on_error="skip")


def assert_holds(store: RldsStore, recordings: Recordings, kept: list[int]) -> None:
    """The store has exactly the recordings `kept`, with their numbers."""
    assert store.ordinals.tolist() == kept
    assert store.lengths.tolist() == [len(recordings["train"][i]) for i in kept]
    for at, i in enumerate(kept):
        np.testing.assert_array_equal(store.numbers("action", at), recordings["train"][i].action)
        assert store.image("observation/primary", at, 1).shape == (32, 32, 3)
        assert set(store.texts("language_instruction", at)) == {recordings["train"][i].instruction}
        assert store.metadata(at)["seed"] == recordings["train"][i].metadata["seed"]


@pytest.fixture
def places(written: Path) -> list[tuple[Path, int]]:
    """(shard, start of its record) of every train episode."""
    found = [(path, start) for path in shards_of(written) for start in record_starts(path)]
    assert len(found) == 5
    assert len(shards_of(written)) >= 2
    return found


def test_a_flipped_byte_costs_one_episode(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    path, start = places[1]
    data = bytearray(path.read_bytes())
    data[start + 300] ^= 0x10
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"written/train: skipped 1 damaged of 5 episodes: .*CRC") as caught:
        dataset = open_dataset(written, on_error="skip")
    assert len(caught) == 1
    store = dataset.store
    assert isinstance(store, RldsStore)
    number = sum(p == path for p, _ in places[:1])
    assert len(store.skipped) == 1
    assert store.skipped[0].startswith(f"{path}: record {number} at byte {start}: CRC of the data is wrong")
    assert_holds(store, recordings, [0, 2, 3, 4])


def test_a_cut_shard_costs_what_comes_after(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    path = places[0][0]
    inside = [i for i, (p, _) in enumerate(places) if p == path]
    path.write_bytes(path.read_bytes()[: places[inside[-1]][1] + 40])
    store = open_skipping(written)
    assert "file is truncated" in store.skipped[0]
    assert_holds(store, recordings, [i for i in range(5) if i != inside[-1]])


def test_a_wrong_length_costs_the_rest_of_the_shard(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    path = places[-1][0]
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    lost = sum(p == path for p, _ in places)
    with pytest.warns(UserWarning, match=f"skipped {lost} damaged of 5 episodes"):
        store = RldsStore.open(RldsFolder.open(written), "train", on_error="skip")
    assert "CRC of the length is wrong" in store.skipped[0]
    assert_holds(store, recordings, list(range(5 - lost)))


def test_a_missing_shard_costs_its_episodes(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    path = places[0][0]
    lost = sum(p == path for p, _ in places)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}: shard is missing; copy"):
        open_dataset(written)
    store = open_skipping(written)
    assert store.skipped == [f"{path}: shard is missing; copy the dataset again"]
    assert_holds(store, recordings, list(range(lost, 5)))
    path.write_bytes(content)
    assert len(open_dataset(written)) == 5


def test_a_record_without_a_field_is_left_out(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    change_record(*places[0], b"steps/is_last", b"steps/is_lost")
    with pytest.raises(ValueError, match=r"record 0 at byte 0: no field 'steps/is_last'; it has"):
        open_dataset(written)
    store = open_skipping(written)
    assert "record 0 at byte 0: no field 'steps/is_last'" in store.skipped[0]
    assert_holds(store, recordings, [1, 2, 3, 4])


def test_too_many_records(written: Path, recordings: Recordings, places: list[tuple[Path, int]]) -> None:
    path = places[-1][0]
    count = sum(p == path for p, _ in places)
    path.write_bytes(path.read_bytes() + shards_of(written)[0].read_bytes())
    extra = sum(p == places[0][0] for p, _ in places)
    store = open_skipping(written)
    assert f"has {count + extra} episodes, dataset_info.json says {count}" in store.skipped[0]
    assert_holds(store, recordings, [0, 1, 2, 3, 4])


def test_the_index_remembers_what_it_left_out(
    written: Path, places: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, start = places[2]
    data = bytearray(path.read_bytes())
    data[start + 300] ^= 0x10
    path.write_bytes(data)
    first = open_skipping(written)
    build: Callable[..., None] = lambda *args, **kwargs: pytest.fail("built again")  # noqa: E731
    monkeypatch.setattr(index, "build_index", build)
    again = open_skipping(written)
    assert again.skipped == first.skipped
    np.testing.assert_array_equal(again.ordinals, first.ordinals)
    with pytest.raises(ValueError, match="CRC of the data is wrong"):
        open_dataset(written)


def test_sound_data_skips_nothing_silently(written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = RldsStore.open(RldsFolder.open(written), "train", on_error="skip")
    assert store.skipped == []


def test_nothing_left_is_an_error(written: Path) -> None:
    for path in shards_of(written):
        path.unlink()
    with pytest.raises(ValueError, match=r"split 'train' has no readable episode: .*shard is missing"):
        open_dataset(written, on_error="skip")


def test_other_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="on_error 'ignore': wanted 'error' or 'skip'"):
        check_on_error("ignore")


def test_nan_is_left_out_too(written: Path, recordings: Recordings, places: list[tuple[Path, int]]) -> None:
    for i, step in ((3, 0), (1, 2)):  # from the back: the offsets before stay
        state = np.asarray(recordings["train"][i].state)
        spoiled = state.copy()
        spoiled[step, 1] = np.nan
        change_record(*places[i], state.tobytes(), spoiled.tobytes())
    with pytest.raises(ValueError, match=r"written: episode train/1 step 2: state field 'observation/state'"):
        open_dataset(written)
    with pytest.warns(UserWarning, match=r"written/train: skipped 2 damaged of 5 episodes: .*train/1 step 2"):
        dataset = open_dataset(written, on_error="skip")
    kept = [recordings["train"][i] for i in (0, 2, 4)]
    assert [episode.episode_id for episode in dataset] == ["train/0", "train/2", "train/4"]
    assert dataset.lengths.tolist() == [len(data) for data in kept]
    full = open_dataset(written, check=False)
    for episode, data, number in zip(dataset, kept, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(episode.action, data.action)
        np.testing.assert_array_equal(episode.image(1), full[number].image(1))
        assert episode.instruction == data.instruction
        assert episode.metadata["seed"] == data.metadata["seed"]
    wanted = np.concatenate([np.asarray(data.state) for data in kept])
    np.testing.assert_array_equal(dataset.store.column("observation/state"), wanted)
    assert [text.split(":")[1] for text in dataset.skipped] == [
        " episode train/1 step 2",
        " episode train/3 step 0",
    ]


def test_a_broken_record_and_nan_are_both_told(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    state = np.asarray(recordings["train"][4].state)
    spoiled = state.copy()
    spoiled[0, 0] = np.inf
    change_record(*places[4], state.tobytes(), spoiled.tobytes())
    change_record(*places[0], b"steps/is_last", b"steps/is_lost")
    with pytest.warns(UserWarning, match="skipped 1 damaged"):
        dataset = open_dataset(written, on_error="skip")
    assert [episode.episode_id for episode in dataset] == ["train/1", "train/2", "train/3"]
    assert ["is_last" in dataset.skipped[0], "train/4 step 0" in dataset.skipped[1]] == [True, True]


def test_a_field_of_another_kind_names_record_and_field(written: Path) -> None:
    """features.json says whole numbers, the records hold floats."""
    schema = written / "features.json"
    features = json.loads(schema.read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    assert steps["reward"]["tensor"]["dtype"] == "float32"
    steps["reward"]["tensor"]["dtype"] = "int64"
    schema.write_text(json.dumps(features))
    with pytest.raises(
        ValueError, match=r"00000-of-0000\d: record 0 at byte 0: field 'steps/reward' holds float"
    ):
        open_dataset(written)
    with pytest.raises(ValueError, match=r"no readable episode: .*'steps/reward' holds float"):
        open_dataset(written, on_error="skip")


def test_an_undecodable_image_is_stood_in_for_and_told(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    whole = open_dataset(written)
    store = whole.store
    assert isinstance(store, RldsStore)
    lost = {step: store.encoded_image("observation/primary", 1, step) for step in (0, 3, 4)}
    for data in lost.values():
        change_record(*places[1], data, b"junk" + data[4:])
    strict = open_dataset(written)
    with pytest.raises(
        ValueError, match=r"written: episode train/1 step 3 camera 'primary': image cannot be"
    ):
        strict[1].image(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(written, on_error="skip")
        np.testing.assert_array_equal(dataset[1].image(2), whole[1].image(2))
    assert dataset.skipped == []
    for step, neighbor in ((3, 2), (4, 2), (0, 1)):
        told = rf"written: episode train/1 step {step} camera .*; the image of step {neighbor} stands in"
        with pytest.warns(UserWarning, match=told):
            image = dataset[1].image(step)
        np.testing.assert_array_equal(image, whole[1].image(neighbor))
    dataset[1].image(3)
    assert len(dataset.skipped) == 3, "each is counted once"
    np.testing.assert_array_equal(dataset[1].image(3, "wrist"), whole[1].image(3, "wrist"))


def test_an_episode_without_any_readable_image_is_an_error_either_way(
    written: Path, recordings: Recordings, places: list[tuple[Path, int]]
) -> None:
    store = open_dataset(written).store
    assert isinstance(store, RldsStore)
    for step in range(len(recordings["train"][2])):
        data = store.encoded_image("observation/wrist", 2, step)
        change_record(*places[2], data, b"junk" + data[4:])
    dataset = open_dataset(written, on_error="skip")
    with pytest.raises(ValueError, match=r"train/2 step 1 camera 'wrist': .*no other image of the episode"):
        dataset[2].image(1, "wrist")


def test_damage_without_a_valid_crc_is_not_an_episode(written: Path, places: list[tuple[Path, int]]) -> None:
    """A record of junk with right CRCs is named too."""
    path = places[0][0]
    rest = path.read_bytes()[places[1][1] :] if places[1][0] == path else b""
    path.write_bytes(frame(b"\xff" * 50) + rest)
    store = open_skipping(written)
    assert "record 0 at byte 0: record is not a tf.train.Example" in store.skipped[0]
