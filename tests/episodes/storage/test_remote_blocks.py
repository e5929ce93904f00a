"""Blocks of remote files: fetched once, bounded over all files, fetched ahead within a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vla_adapt.episodes.storage import remote_blocks as module
from vla_adapt.episodes.storage.remote_blocks import RemoteBlocks, remote_blocks

SIZE = 5500


def content(i: int) -> bytes:
    return np.random.default_rng(i).bytes(SIZE)


@pytest.fixture
def asked(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """Fetches made of 40 files of a memory filesystem in blocks of 1000 bytes; `url(i)` names one."""
    monkeypatch.setattr(module, "BLOCK", 1000)
    memory = fsspec.filesystem("memory")
    for i in range(40):
        memory.pipe_file(f"/blocks/{i}", content(i))
    fetched: list[tuple[str, int, int]] = []
    cat = type(memory).cat_file

    def counted(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        fetched.append((path, start, end))
        return cat(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    yield fetched
    memory.rm("/blocks", recursive=True)


def url(i: int) -> str:
    return f"memory://blocks/{i}"


def read(blocks: RemoteBlocks, i: int, offset: int, size: int) -> bytes:
    return blocks.read(url(i), "", SIZE, offset, size)


def test_a_block_is_fetched_once(asked: list[tuple[str, int, int]]) -> None:
    blocks = RemoteBlocks()
    for start in range(0, 900, 100):
        assert read(blocks, 0, start, 100) == content(0)[start : start + 100]
    assert asked == [("/blocks/0", 0, 1000)]
    assert read(blocks, 0, 1900, 200) == content(0)[1900:2100]
    assert asked[1:] == [("/blocks/0", 1000, 2000), ("/blocks/0", 2000, 3000)]
    assert read(blocks, 0, 5400, 300) == content(0)[5400:], "ends with the file"
    assert asked[-1] == ("/blocks/0", 5000, SIZE)
    assert read(blocks, 0, 6000, 10) == b""


def test_one_bound_over_all_files(asked: list[tuple[str, int, int]]) -> None:
    """More open files than blocks kept per file ever were: nothing is fetched twice while all fits."""
    blocks = RemoteBlocks(cache_bytes=40_000)
    for _ in range(3):
        for i in range(40):
            assert read(blocks, i, 10, 50) == content(i)[10:60]
    assert len(asked) == 40
    read(blocks, 0, 1500, 10)  # pushes out the block used longest ago: that of file 0 is the 1st of the round
    assert len(blocks._blocks) == 40
    read(blocks, 1, 0, 10)
    assert len(asked) == 41
    read(blocks, 0, 0, 10)
    assert len(asked) == 42


def test_a_changed_file_is_read_anew(asked: list[tuple[str, int, int]]) -> None:
    blocks = RemoteBlocks()
    assert read(blocks, 0, 0, 5) == content(0)[:5]
    fsspec.filesystem("memory").pipe_file("/blocks/0", content(7))
    assert blocks.read(url(0), "another mark", SIZE, 0, 5) == content(7)[:5]


def test_fetched_ahead_in_the_background(asked: list[tuple[str, int, int]]) -> None:
    blocks = RemoteBlocks()
    for i in range(10):
        blocks.prefetch(url(i), "", SIZE, 900, 200)
    for i in range(10):
        assert read(blocks, i, 900, 200) == content(i)[900:1100]
    assert sorted(asked) == sorted((f"/blocks/{i}", s, s + 1000) for i in range(10) for s in (0, 1000))


def test_fetching_ahead_is_bounded_and_does_not_wait(
    asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    fetch = RemoteBlocks._fetch

    def held(self, *arguments):
        gate.wait(10)
        fetch(self, *arguments)

    monkeypatch.setattr(RemoteBlocks, "_fetch", held)
    blocks = RemoteBlocks(ahead_bytes=12_000)
    for i in range(40):
        blocks.prefetch(url(i), "", SIZE, 0, 10)
    assert (len(blocks._blocks), blocks._waiting, asked) == (12, 12, [])
    gate.set()
    for i in range(40):
        assert read(blocks, i, 0, 10) == content(i)[:10]
    assert len(asked) == 40


def test_a_failure_reaches_the_reader_and_is_forgotten(asked: list[tuple[str, int, int]]) -> None:
    blocks = RemoteBlocks()
    memory = fsspec.filesystem("memory")
    memory.rm_file("/blocks/3")
    blocks.prefetch(url(3), "", SIZE, 0, 10)
    with pytest.raises(FileNotFoundError):
        read(blocks, 3, 0, 10)
    memory.pipe_file("/blocks/3", content(3))
    assert read(blocks, 3, 0, 10) == content(3)[:10]


def test_many_threads(asked: list[tuple[str, int, int]]) -> None:
    blocks, wrong = RemoteBlocks(cache_bytes=7000, ahead_bytes=3000), []

    def draw(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(150):
            i, start, size = int(rng.integers(40)), int(rng.integers(SIZE)), int(rng.integers(2500))
            blocks.prefetch(url((i + 1) % 40), "", SIZE, start, size)
            if read(blocks, i, start, size) != content(i)[start : start + size]:
                wrong.append((i, start, size))

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert blocks._threads is not None
    blocks._threads.shutdown()
    assert blocks._waiting == 0


def test_a_process_has_one_cache_and_a_forked_one_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = remote_blocks()
    assert remote_blocks() is ours
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    assert remote_blocks() is not ours
