"""The step index: cached, keyed by the files, safe to build at once, refusing damage."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.rlds import index as index_module
from vla_adapt.episodes.rlds.index import open_index
from vla_adapt.episodes.rlds.index_columns import ColumnFiles
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.storage.cache_folder import BESIDE, CACHE_VARIABLE


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


def test_processes_may_build_at_once(written: Path, tmp_path: Path) -> None:
    """All get the same, and only one reads the data."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    with context.Pool(4, initializer=_meet, initargs=(barrier, tmp_path / "builds")) as pool:
        sums = pool.map(_build, [written] * 4, chunksize=1)
    assert len(set(sums)) == 1
    assert [path.name[:6] for path in (written / BESIDE).iterdir()] == ["train-"]
    assert (tmp_path / "builds").read_text() == "one "


def _meet(barrier, log: Path) -> None:
    global _BARRIER
    _BARRIER = barrier
    build = index_module.build_index

    def logged(*args, **kwargs):
        with log.open("a") as file:
            file.write("one ")
        return build(*args, **kwargs)

    index_module.build_index = logged


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


def test_a_full_disk_leaves_nothing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of the second shard."""
    append, left = ColumnFiles.append, [60]

    def full(self: ColumnFiles, name: str, values: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(ColumnFiles, "append", full)
        with pytest.raises(ValueError, match=r"disk is full \(\d+ MiB free\) while writing train-"):
            open_dataset(written)
    assert left[0] == -1
    assert list((written / BESIDE).iterdir()) == []
    assert open_dataset(written)[4].image(0).shape == (32, 32, 3)


@pytest.mark.slow
def test_a_really_full_disk(written: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with pytest.raises(ValueError, match="disk is full"):
            open_dataset(written, cache_dir=place)
        assert [path for path in place.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_a_killed_build_left_is_removed_in_time(written: Path) -> None:
    for name, age in (("old", 3 * 24 * 3600), ("new", 60)):
        work = written / BESIDE / f".building-{name}"
        (work / "new").mkdir(parents=True)
        (work / "new" / "000.npy").write_bytes(b"part")
        for path in (work / "new" / "000.npy", work / "new", work):
            os.utime(path, (time.time() - age, time.time() - age))
    open_dataset(written)
    left = {path.name for path in (written / BESIDE).iterdir() if path.name.startswith(".")}
    assert left == {".building-new"}


def spoil_image(folder: Path) -> None:
    """Change a byte inside the third image of the first episode without changing the file's size or time."""
    path = sorted(folder.glob("*-train.tfrecord-*"))[0]
    state, data = path.stat(), bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    data[starts[2] + 40] += 1  # in a quantization table: another picture, but a sound JPEG
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_image_crcs_find_one_changed_byte(written: Path) -> None:
    plain = open_dataset(written)
    careful = open_dataset(written, verify_images=True)
    np.testing.assert_array_equal(careful[0].image(2), plain[0].image(2))
    spoil_image(written)
    broken = []
    for t in range(len(plain[0])):
        for camera in plain[0].cameras:
            plain[0].image(t, camera)  # nobody notices
            try:
                careful[0].image(t, camera)
            except ValueError as error:
                broken.append(str(error))
    assert len(broken) == 1
    assert "CRC of the image is wrong" in broken[0]
    assert sorted(written.glob("*-train.tfrecord-*"))[0].name in broken[0]


def test_an_index_with_image_crcs_will_do_for_all(written: Path, builds: list[int]) -> None:
    open_dataset(written, verify_images=True)
    open_dataset(written)
    open_dataset(written, verify_crc=False)
    assert len(builds) == 1
    open_dataset(written, cache_dir=written / "elsewhere")
    open_dataset(written, cache_dir=written / "elsewhere", verify_images=True)
    assert len(builds) == 3


def test_index_is_small(written: Path) -> None:
    """Images are 12 bytes a camera, numbers as they are, texts 4."""
    index = open_index(RldsFolder.open(written), "train")
    numbers = (
        7 * 4 + 8 * 4 + 3 * 4 + 2 * 8 + 1 + 3 * 1 + 2 * 4
    )  # action .. count, touch, is_*, reward, discount
    steps = int(index.lengths.sum())
    in_steps = sum(
        a.nbytes for name, a in index.arrays.items() if name.startswith("steps/") and len(a) == steps
    )
    assert in_steps == steps * (numbers + 2 * 12 + 4)
    assert index.bytes_per_frame < 300  # 30 steps carry the 80-wide field's spans and the string tables too
