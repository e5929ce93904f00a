"""An RLDS folder on any fsspec filesystem: its JSON files copied to the cache, its shards left there."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from vla_adapt.episodes.mapping.entry import SIDECAR
from vla_adapt.episodes.rlds.version_folder import find_remote_version_folder
from vla_adapt.episodes.storage.byte_source import ShardFile
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable

_JSON_FILES = ("features.json", "dataset_info.json", SIDECAR)
# What filesystems call the thing that changes with a file's content, the surest first.
_MARKS = (
    "etag",
    "ETag",
    "generation",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


@dataclass(frozen=True)
class RemoteFolder:
    """Where a remote dataset's files are.

    Attributes:
        url: of the version folder.
        mirror: local folder with copies of its JSON files.
        files: shard path relative to the folder -> (size, mark), as listed when it was found.
    """

    url: str
    mirror: Path
    files: Mapping[str, tuple[int, str]]

    @classmethod
    def find(cls, url: str, cache_dir: str | Path | None = None) -> RemoteFolder:
        """List the version folder at `url` or below it, and copy its JSON files.

        Raises:
            ValueError: unknown protocol, not reachable, no dataset or several there.
        """
        try:
            filesystem, path = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{url}: cannot be read: {error}") from None
        try:
            folder = find_remote_version_folder(filesystem, path, url)
            listed = filesystem.find(folder, detail=True)
            version_url = str(filesystem.unstrip_protocol(folder))
            mirror = first_writable([cache_folder(version_url, cache_dir) / "json"])
            _copy_json(filesystem, folder, mirror)
        except FileNotFoundError:
            raise ValueError(f"{url}: nothing is there; wanted a dataset as tfds writes it") from None
        except OSError as error:
            raise ValueError(f"{url}: cannot be read: {str(error) or type(error).__name__}") from None
        assert isinstance(listed, dict)
        files = {posixpath.relpath(name, folder): _state(info) for name, info in listed.items()}
        return cls(version_url, mirror, files)

    def shard(self, name: str, count: int) -> ShardFile:
        """A shard by its path relative to the folder."""
        location = posixpath.join(self.url, name)
        size, mark = self.files.get(name, (None, ""))
        return ShardFile(location, count, size, mark, location)


def cache_folder(url: str, cache_dir: str | Path | None) -> Path:
    """The folder of the cache for the dataset at `url`."""
    return cache_places(Path("/", url.replace("://", "/")), cache_dir)[-1]


def _state(info: Mapping[str, Any]) -> tuple[int, str]:
    mark = next((str(info[key]) for key in _MARKS if info.get(key) is not None), "")
    return int(info["size"]), mark


def _copy_json(filesystem: AbstractFileSystem, folder: str, mirror: Path) -> None:
    """Bring the mirror up to date; each file appears whole."""
    for name in _JSON_FILES:
        try:
            content = bytes(filesystem.cat_file(posixpath.join(folder, name)))  # type: ignore[arg-type]
        except FileNotFoundError:
            (mirror / name).unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):
            if (mirror / name).read_bytes() == content:
                continue
        descriptor, temporary = tempfile.mkstemp(dir=mirror)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, mirror / name)
