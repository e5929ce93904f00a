"""Blocks of remote files: one bounded cache for all files of a process, filled ahead in the background."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import fsspec

BLOCK = 256 << 10
# Over all remote files of a process; least recently used blocks go first.
CACHE_BYTES = 128 << 20
# Of these, asked for in the background and not there yet; what is asked beyond is read when it is needed.
AHEAD_BYTES = 32 << 20
THREADS = 8

# URL, what changes when the file does, number of the block.
_Key = tuple[str, str, int]


class RemoteBlocks:
    """Reads remote files by blocks that are fetched once while they stay in the cache. Thread-safe."""

    def __init__(self, cache_bytes: int | None = None, ahead_bytes: int | None = None):
        self._room = max((cache_bytes or CACHE_BYTES) // BLOCK, 1)
        self._ahead = max((ahead_bytes or AHEAD_BYTES) // BLOCK, 1)
        self._blocks: OrderedDict[_Key, Future[bytes]] = OrderedDict()
        self._lock, self._waiting = threading.Lock(), 0
        self._threads: ThreadPoolExecutor | None = None

    def read(self, url: str, mark: str, file_size: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`: fewer at the end of the file.

        Raises:
            OSError: the file cannot be read.
        """
        pieces = []
        for number in _numbers(file_size, offset, size):
            key = (url, mark, number)
            with self._lock:
                block = self._blocks.get(key)
                mine = block is None
                block = block or self._add(key)
                self._blocks.move_to_end(key)
            if mine:
                self._fetch(key, file_size, block)
            start = number * BLOCK
            pieces.append(block.result()[max(offset - start, 0) : max(offset + size - start, 0)])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def prefetch(self, url: str, mark: str, file_size: int, offset: int, size: int) -> None:
        """Fetch in the background what a later `read` will want, as far as the bound allows; never waits."""
        for number in _numbers(file_size, offset, size):
            key = (url, mark, number)
            with self._lock:
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    continue
                if self._waiting >= self._ahead:
                    return
                self._waiting += 1
                block = self._add(key)
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="remote-blocks")
                self._threads.submit(self._fetch_ahead, key, file_size, block)

    def _add(self, key: _Key) -> Future[bytes]:
        """Room for a block that is about to be fetched; blocks that others wait for are not dropped."""
        self._blocks[key] = block = Future()
        over = len(self._blocks) - self._room
        if over > 0:
            done = (old for old, found in self._blocks.items() if found.done())
            for oldest in list(islice(done, over)):
                del self._blocks[oldest]
        return block

    def _fetch_ahead(self, key: _Key, file_size: int, block: Future[bytes]) -> None:
        try:
            self._fetch(key, file_size, block)
        finally:
            with self._lock:
                self._waiting -= 1

    def _fetch(self, key: _Key, file_size: int, block: Future[bytes]) -> None:
        """Fill a block; a failure is told to all who wait for it, and the next reader tries again."""
        url, _, number = key
        try:
            filesystem, path = fsspec.url_to_fs(url)
            start, end = number * BLOCK, min((number + 1) * BLOCK, file_size)
            block.set_result(bytes(filesystem.cat_file(path, start=start, end=end)))  # type: ignore[arg-type]
        except BaseException as error:
            with self._lock:
                self._blocks.pop(key, None)
            block.set_exception(error)


def remote_blocks() -> RemoteBlocks:
    """The cache of this process; a forked one begins anew, for connections and threads stay behind."""
    global _OF_PROCESS
    if _OF_PROCESS is None or _OF_PROCESS[0] != os.getpid():
        _OF_PROCESS = os.getpid(), RemoteBlocks()
    return _OF_PROCESS[1]


_OF_PROCESS: tuple[int, RemoteBlocks] | None = None


def _numbers(file_size: int, offset: int, size: int) -> Iterator[int]:
    """Blocks that a piece of a file lies in."""
    end = min(offset + size, file_size)
    return iter(range(offset // BLOCK, -(-end // BLOCK)) if end > offset else ())
