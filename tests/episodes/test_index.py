"""The step index: cached, keyed by the files, safe to build at once, refusing damage."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes import index as index_module
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.index import BESIDE, CACHE_VARIABLE


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever an index is built."""
    seen: list[int] = []
    build = index_module.build_index

    def counted(*args, **kwargs):
        seen.append(1)
        return build(*args, **kwargs)

    monkeypatch.setattr(index_module, "build_index", counted)
    return seen


def shard_of(folder: Path) -> Path:
    return sorted(folder.glob("*-train.tfrecord-*"))[-1]


def test_second_opening_reuses(written: Path, builds: list[int]) -> None:
    first = open_dataset(written)
    second = open_dataset(written.parent)
    assert len(builds) == 1
    assert list((written / BESIDE).glob("train-*"))
    np.testing.assert_array_equal(first[2].image(1), second[2].image(1))
    open_dataset(written, split="val")
    assert len(builds) == 2


def test_changed_time_rebuilds_and_removes_the_old(written: Path, builds: list[int]) -> None:
    open_dataset(written)
    os.utime(shard_of(written), ns=(1, 1))
    open_dataset(written)
    assert len(builds) == 2
    assert len(list((written / BESIDE).glob("train-*"))) == 1


def test_changed_size_rebuilds(written: Path, builds: list[int]) -> None:
    open_dataset(written)
    path = shard_of(written)
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"rest")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match="file is truncated"):
        open_dataset(written)
    assert len(builds) == 2


def test_damaged_index_is_built_again(written: Path, builds: list[int]) -> None:
    open_dataset(written)
    next((written / BESIDE).glob("train-*/manifest.json")).write_text("{")
    assert open_dataset(written)[0].image(0).shape == (32, 32, 3)
    assert len(builds) == 2


def test_read_only_dataset_uses_the_cache_folder(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[int]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    written.chmod(0o555)
    try:
        open_dataset(written)
        open_dataset(written)
        assert not (written / BESIDE).exists()
    finally:
        written.chmod(0o755)
    assert len(builds) == 1
    assert list((tmp_path / "cache").glob("rlds/*/train-*/manifest.json"))


def test_no_writable_folder_says_so(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    blocked.chmod(0o555)
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked))
    written.chmod(0o555)
    try:
        with pytest.raises(
            ValueError, match=rf"no writable folder for the step index .*set {CACHE_VARIABLE}"
        ):
            open_dataset(written)
    finally:
        written.chmod(0o755)
        blocked.chmod(0o755)


def test_cache_dir_argument(written: Path, tmp_path: Path) -> None:
    open_dataset(written, cache_dir=tmp_path / "mine")
    assert not (written / BESIDE).exists()
    assert list((tmp_path / "mine").glob("rlds/*/train-*"))


def test_processes_may_build_at_once(written: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    with context.Pool(4, initializer=_meet, initargs=(barrier,)) as pool:
        sums = pool.map(_build, [written] * 4, chunksize=1)
    assert len(set(sums)) == 1
    assert [path.name[:6] for path in (written / BESIDE).iterdir()] == ["train-"]


def _meet(barrier) -> None:
    global _BARRIER
    _BARRIER = barrier


def _build(folder: Path) -> float:
    _BARRIER.wait(20)
    dataset = open_dataset(folder)
    return float(sum(int(episode.image(0).sum()) for episode in dataset))


def test_flipped_byte_is_found_when_indexing(written: Path) -> None:
    path = shard_of(written)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name}: record \d+ at byte \d+: CRC of the data is wrong"):
        open_dataset(written)


def test_an_index_built_without_crc_does_not_count_as_checked(written: Path, builds: list[int]) -> None:
    path = shard_of(written)
    data = bytearray(path.read_bytes())
    data[-20] ^= 0x10  # inside a JPEG or a number near the end
    path.write_bytes(data)
    open_dataset(written, verify_crc=False, check=False)
    open_dataset(written, verify_crc=False, check=False)
    assert len(builds) == 1
    with pytest.raises(ValueError, match="CRC of the data"):
        open_dataset(written)


def test_truncated_file_names_file_and_what_to_do(written: Path) -> None:
    path = shard_of(written)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"{path.name}: record \d+ at byte \d+: file is truncated .*copy it again"
    ):
        open_dataset(written)


def test_lost_records_are_noticed(written: Path) -> None:
    path = shard_of(written)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{path.name}: has 0 episodes, dataset_info\.json says"):
        open_dataset(written)


def test_file_shortened_after_opening(written: Path) -> None:
    dataset = open_dataset(written)
    path = shard_of(written)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="reopen the dataset"):
        dataset[4].image(5)
