"""Positioned reads of shard files: local descriptors and remote blocks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from vla_adapt.episodes.rlds import tfrecord
from vla_adapt.episodes.rlds.tfrecord import frame, scan_records
from vla_adapt.episodes.storage import byte_source, remote_blocks
from vla_adapt.episodes.storage.byte_source import MAX_OPEN_FILES, ShardFile, ShardReader, is_url

SIZE = 3000


def content(i: int) -> bytes:
    return np.random.default_rng(i).bytes(SIZE)


def shard(location: str) -> ShardFile:
    return ShardFile(location, 1, SIZE, "", location)


@pytest.fixture(params=["local", "file", "memory"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> list[ShardFile]:
    if request.param == "memory":
        files = [f"memory://{tmp_path}/{i}" for i in range(3)]
        for i, name in enumerate(files):
            fsspec.filesystem("memory").pipe_file(name, content(i))
        return [shard(name) for name in files]
    for i in range(3):
        (tmp_path / str(i)).write_bytes(content(i))
    prefix = "file://" if request.param == "file" else ""
    return [shard(f"{prefix}{tmp_path}/{i}") for i in range(3)]


def test_what_is_a_url() -> None:
    assert is_url("gs://bucket/x")
    assert not is_url("/data/x")
    assert not is_url(Path("x"))


def test_any_piece_of_any_file(shards: list[ShardFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_blocks, "BLOCK", 256)
    monkeypatch.setattr(remote_blocks, "CACHE_BYTES", 1000)
    monkeypatch.setattr(remote_blocks, "_OF_PROCESS", None)
    reader, rng = ShardReader(shards), np.random.default_rng(0)
    for _ in range(300):
        i, start = int(rng.integers(3)), int(rng.integers(SIZE))
        size = int(rng.integers(min(600, SIZE - start) + 1))
        assert reader.read(i, start, size) == content(i)[start : start + size]


def test_opened_in_order(shards: list[ShardFile]) -> None:
    file, size = shards[1].open()
    with file:
        assert size == SIZE
        buffer = bytearray(SIZE + 10)
        got = file.readinto(memoryview(buffer))  # type: ignore[attr-defined]
    assert bytes(buffer[:got]) == content(1)


def test_past_the_end_says_reopen(shards: list[ShardFile]) -> None:
    with pytest.raises(ValueError, match=rf"{shards[0].location}: ends before byte 3001; reopen the dataset"):
        ShardReader(shards).read(0, 2990, 11)


def test_a_vanished_file_is_named(shards: list[ShardFile]) -> None:
    gone = shard(shards[0].location + "-gone")
    with pytest.raises(ValueError, match=rf"{gone.location}: cannot be read"):
        ShardReader([gone]).read(0, 0, 10)
    with pytest.raises(ValueError, match=rf"{gone.location}: cannot be read"):
        gone.open()


def test_pickled_and_forked(shards: list[ShardFile]) -> None:
    reader = ShardReader(shards)
    assert reader.read(2, 10, 20) == content(2)[10:30]
    assert pickle.loads(pickle.dumps(reader)).read(2, 10, 20) == content(2)[10:30]
    with multiprocessing.get_context("fork").Pool(2, initializer=_take, initargs=(reader,)) as pool:
        assert pool.map(_read, range(3)) == [content(i)[5:50] for i in range(3)]


def _take(reader: ShardReader) -> None:
    global _READER
    _READER = reader


def _read(i: int) -> bytes:
    return _READER.read(i, 5, 45)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_few_descriptors_whatever_the_number_of_shards(tmp_path: Path) -> None:
    files = []
    for i in range(4 * MAX_OPEN_FILES):
        (tmp_path / str(i)).write_bytes(content(i))
        files.append(shard(str(tmp_path / str(i))))
    before = open_files()
    reader = ShardReader(files)
    for i in [*range(len(files)), *range(0, len(files), 5)]:
        assert reader.read(i, 7, 3) == content(i)[7:10]
    assert open_files() == before + MAX_OPEN_FILES
    del reader
    assert open_files() == before


def test_at_the_limit_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(content(0))
    (tmp_path / "1").write_bytes(content(1))
    reader = ShardReader([shard(str(tmp_path / str(i))) for i in range(2)])
    reader.read(0, 0, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Every number up to the limit is taken, the reader's own among them.
    taken = []
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))  # other tests leave files open
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        assert reader.read(1, 0, 5) == content(1)[:5]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_prefetched_pieces_are_read_without_a_fetch(
    shards: list[ShardFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(shards)
    assert reader.is_remote == is_url(shards[0].data)
    reader.prefetch(1, 100, 50)
    assert reader.read(1, 100, 50) == content(1)[100:150]
    if reader.is_remote:
        monkeypatch.setattr(remote_blocks.RemoteBlocks, "_fetch", None)
        reader.prefetch(1, 0, SIZE)
        assert reader.read(1, 0, SIZE) == content(1)


class RangedFiles(AbstractFileSystem):
    """A network filesystem as gcsfs and s3fs are made: nothing but listings and ranged reads."""

    protocol = "ranged"
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[int, int]]] = []

    def _open(self, path: str, mode: str = "rb", block_size: int = 1, **options: Any) -> Any:
        return _RangedFile(self, path, mode, block_size, size=len(self.files[path]), **options)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.files[path]), "type": "file"}


class _RangedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.asked.append((start, end))
        return self.fs.files[self.path][start:end]


def test_streaming_is_by_blocks_each_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("ranged", RangedFiles, clobber=True)
    monkeypatch.setattr(byte_source, "STREAM_BLOCK", 400)
    monkeypatch.setattr(tfrecord, "PIECE", 200)
    payloads = [content(i)[: 150 * i] for i in range(8)]
    data = b"".join(frame(payload) for payload in payloads)
    monkeypatch.setattr(RangedFiles, "files", {"bucket/a": data})
    monkeypatch.setattr(RangedFiles, "asked", [])
    location = "ranged://bucket/a"
    file, size = ShardFile(location, 8, len(data), "", location).open()
    with file:
        got = [bytes(record.payload) for record in scan_records(file, size) if record.payload is not None]
    assert got == payloads
    assert sorted(RangedFiles.asked) == [(start, start + 400) for start in range(0, len(data), 400)]
