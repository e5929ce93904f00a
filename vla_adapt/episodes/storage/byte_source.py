"""Bytes of shard files, local or on any fsspec filesystem: read through once in order, or by position.

Local files are read with `os.pread`. Remote ones are read in blocks (see `remote_blocks`), and, in order,
with one block fetched ahead in the background.
"""

from __future__ import annotations

import errno
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec

from vla_adapt.episodes.storage.remote_blocks import remote_blocks

# Descriptors held open by one reader: a mixture of 30 datasets stays below the usual limit of 1024.
MAX_OPEN_FILES = 24
STREAM_BLOCK = 8 << 20


def is_url(path: str | Path) -> bool:
    """Whether `path` names something on an fsspec filesystem ("gs://bucket/folder") and not a local path."""
    return isinstance(path, str) and "://" in path


@dataclass(frozen=True)
class ShardFile:
    """One file of a split.

    Attributes:
        location: path or URL; what messages name.
        count: records it must hold.
        size: bytes of it, None when it is missing.
        mark: changes whenever the file does (modification time, etag, ...).
        data: path or URL of the bytes to read, another file than `location` when that one is compressed.
    """

    location: str
    count: int
    size: int | None
    mark: str
    data: str

    @property
    def is_unpacked(self) -> bool:
        """Whether the bytes are read from another file than the dataset's own."""
        return self.data != self.location

    def reading(self, data: str | Path) -> ShardFile:
        """The same shard, its bytes read from `data`."""
        return replace(self, data=str(data))

    def open(self) -> tuple[io.IOBase, int]:
        """The file from its start, to be read once in order, and its size.

        Raises:
            ValueError: it cannot be opened.
        """
        try:
            if is_url(self.data):
                filesystem, path = fsspec.url_to_fs(self.data)
                file = filesystem.open(
                    path,
                    block_size=STREAM_BLOCK,
                    cache_type="background",
                    cache_options={"maxblocks": 3},
                )
                return file, int(self.size or 0)
            local = io.FileIO(self.data)
            return local, os.fstat(local.fileno()).st_size
        except OSError as error:
            raise ValueError(f"{self.location}: cannot be read: {error.strerror or error}") from None


class ShardReader:
    """Positioned reads of shard files; survives fork and pickling (files are opened again)."""

    def __init__(self, shards: Sequence[ShardFile]):
        self._shards = list(shards)
        self._remote = [is_url(file.data) for file in self._shards]
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a shard.

        Raises:
            ValueError: the file ends before that (it changed after it was indexed) or cannot be read.
        """
        file = self._shards[shard]
        try:
            if self._remote[shard]:
                data = remote_blocks().read(file.data, file.mark, file.size or 0, offset, size)
            else:
                data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise ValueError(f"{file.location}: cannot be read: {error.strerror or error}") from None
        if len(data) != size:
            raise ValueError(f"{file.location}: ends before byte {offset + size}; reopen the dataset")
        return data

    @property
    def is_remote(self) -> bool:
        """Whether any of the shards is."""
        return any(self._remote)

    def prefetch(self, shard: int, offset: int, size: int) -> None:
        """Say that this piece will be read soon; a remote one is fetched in the background."""
        file = self._shards[shard]
        if self._remote[shard]:
            remote_blocks().prefetch(file.data, file.mark, file.size or 0, offset, size)

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is not None:
            self._open.move_to_end(shard)
            return descriptor
        while len(self._open) >= MAX_OPEN_FILES:
            self._close_oldest()
        try:
            descriptor = os.open(self._shards[shard].data, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
            while self._open:
                self._close_oldest()
            descriptor = os.open(self._shards[shard].data, os.O_RDONLY)
        self._open[shard] = descriptor
        return descriptor

    def _close_oldest(self) -> None:
        _, descriptor = self._open.popitem(last=False)
        os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_shards"])

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
