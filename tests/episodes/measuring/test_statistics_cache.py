"""Cached summaries: found again, and not found once anything they depend on has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, EpisodeData, MemoryDataset, open_dataset
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.measuring import statistics_cache
from vla_adapt.episodes.measuring.motion_summary import MotionSummary, summarize
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.measuring.statistics_cache import SummaryCache
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset


@pytest.fixture
def dataset(written: Path) -> MappedDataset:
    return open_dataset(written)


@pytest.fixture
def summary(dataset: MappedDataset) -> MotionSummary:
    return summarize(dataset, 0, len(dataset), "slots")


def entries(dataset: MappedDataset) -> list[Path]:
    return sorted((dataset.path / ".vla_adapt_index").glob("statistics-*"))


def test_what_is_saved_is_loaded(dataset: MappedDataset, summary: MotionSummary) -> None:
    assert SummaryCache(dataset, "slots").load() is None
    SummaryCache(dataset, "slots").save(summary)
    again = SummaryCache(open_dataset(dataset.path), "slots")
    assert again.is_there
    loaded = again.load()
    assert loaded is not None
    mask = np.ones(32, bool)
    assert loaded.action.statistics(mask) == summary.action.statistics(mask)
    assert loaded.proprio.statistics(mask) == summary.proprio.statistics(mask)


def test_a_hit_reads_no_episode(dataset: MappedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = robot_statistics([dataset])

    def refuse(self: MappedDataset, index: int) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(MappedDataset, "__getitem__", refuse)
    assert robot_statistics([open_dataset(dataset.path)]) == wanted
    with pytest.raises(AssertionError, match="read"):
        robot_statistics([dataset], cache=False)


def test_any_change_misses(written: Path, dataset: MappedDataset, summary: MotionSummary) -> None:
    SummaryCache(dataset, "slots").save(summary)
    robot = dataset.embodiment
    quicker = robot.model_copy(update={"rate_hz": robot.rate_hz * 2})
    entry = dataset.entry.model_copy(update={"transforms": ("drop_first_step",)})
    others = {
        "split": open_dataset(written, split="val"),
        "embodiment": open_dataset(written, embodiment=quicker),
        "transform": open_dataset(written, entry=entry),
        "fewer episodes": EpisodeSubset(dataset, [0, 1, 2]),
        "other episodes": EpisodeSubset(dataset, [0, 1, 3]),
    }
    for what, other in others.items():
        assert not SummaryCache(other, "slots").is_there, what
    assert not SummaryCache(dataset, "padded").is_there
    assert SummaryCache(dataset, "slots").is_there
    some = EpisodeSubset(dataset, [0, 1, 2])
    SummaryCache(some, "slots").save(summary)
    assert SummaryCache(EpisodeSubset(dataset, [0, 1, 2]), "slots").is_there
    os.utime(next(written.glob("*-train.tfrecord-*")), ns=(1, 1))
    assert not SummaryCache(dataset, "slots").is_there
    assert not SummaryCache(some, "slots").is_there


def test_every_nth_step_has_numbers_of_its_own(two_robot_data: dict[str, Path]) -> None:
    free = Embodiment.load("ur5e")  # its limits are for one step
    parts = tuple(part.model_copy(update={"limits": None}) for part in free.action)
    whole = open_dataset(two_robot_data["ur5e"], embodiment=free.model_copy(update={"action": parts}))
    caches = [SummaryCache(each, "slots") for each in (StridedDataset(whole, 2), StridedDataset(whole, 3))]
    caches[0].save(summarize(StridedDataset(whole, 2), 0, 3, "slots"))
    assert [cache.is_there for cache in (*caches, SummaryCache(whole, "slots"))] == [True, False, False]


def test_changed_code_misses(
    dataset: MappedDataset, summary: MotionSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    SummaryCache(dataset, "slots").save(summary)
    monkeypatch.setattr(statistics_cache, "_code", lambda: "another version")
    assert not SummaryCache(dataset, "slots").is_there


def test_changed_numbers_are_never_answered_from_the_cache(
    written: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]
) -> None:
    before = robot_statistics([open_dataset(written)])["franka_panda"].action
    shard = sorted(written.glob("*-train.tfrecord-*"))[0]
    data = bytearray(shard.read_bytes())
    needle = recordings["train"][0].action[0].astype("<f4").tobytes()
    at = data.index(needle)
    data[at : at + 4] = np.float32(0.987).tobytes()
    shard.write_bytes(data)
    after = robot_statistics([open_dataset(written, verify_crc=False)])["franka_panda"].action
    assert after != before


def test_a_damaged_entry_is_computed_and_written_again(dataset: MappedDataset) -> None:
    wanted = robot_statistics([dataset])
    (folder,) = entries(dataset)
    whole = (folder / "action.npz").read_bytes()
    for damage in (whole[:100], b"", b"no zip file"):
        (folder / "action.npz").write_bytes(damage)
        assert robot_statistics([dataset]) == wanted
        assert SummaryCache(dataset, "slots").load() is not None
    shutil.rmtree(folder)
    folder.mkdir()
    assert robot_statistics([dataset]) == wanted


def test_old_entries_go(
    dataset: MappedDataset, summary: MotionSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_cache, "MAX_KEPT", 3)
    for count in range(1, 6):
        SummaryCache(EpisodeSubset(dataset, range(count)), "slots").save(summary)
    assert len(entries(dataset)) == 3
    assert SummaryCache(EpisodeSubset(dataset, range(5)), "slots").is_there


def test_nowhere_to_write_is_no_error(
    dataset: MappedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("VLA_ADAPT_CACHE", str(blocked))
    shutil.rmtree(dataset.path / ".vla_adapt_index")
    dataset.path.chmod(0o555)
    try:
        wanted = robot_statistics([dataset], cache=False)
        assert robot_statistics([dataset]) == wanted
        assert not SummaryCache(dataset, "slots").is_there
    finally:
        dataset.path.chmod(0o755)


def test_data_in_memory_is_not_cached(robot: Embodiment, recordings: dict[str, list[EpisodeData]]) -> None:
    memory = SummaryCache(MemoryDataset("m", robot, recordings["train"]), "slots")
    memory.save(MotionSummary())
    assert not memory.is_there
    assert memory.load() is None


def test_an_hdf5_file_keeps_its_own(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    entry = DatasetEntry.model_validate(
        {"embodiment": "franka_panda", "cameras": {"primary": "rgb"}, "state": None, "instruction": ""}
    )
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["data/demo_0/action"] = rng.uniform(-1, 1, (5, 7))
            file["data/demo_0/rgb"] = np.zeros((5, 4, 4, 3), np.uint8)
    first, second = (open_dataset(tmp_path / f"{name}.hdf5", entry=entry) for name in ("a", "b"))
    numbers = [robot_statistics([one]) for one in (first, second)]
    assert numbers[0] != numbers[1]
    assert [robot_statistics([one]) for one in (first, second)] == numbers
