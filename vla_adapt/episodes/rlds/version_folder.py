"""Which folder holds an RLDS dataset: the one with `features.json`, at the path given or below it."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from fsspec import AbstractFileSystem

from vla_adapt.episodes.storage.format_marks import HDF5_ENDINGS, LEROBOT_INFO
from vla_adapt.suggest import did_you_mean

# The folder itself; a dataset's versions; a data folder's datasets or a dataset's configurations; both.
_PATTERNS = ("features.json", "*/features.json", "*/*/features.json", "*/*/*/features.json")


def find_version_folder(path: Path) -> Path:
    """The folder holding `features.json`: `path`, or the only one up to three levels below it.

    Raises:
        ValueError: none found, or several to choose from (lists them).
    """
    if path.is_file():
        raise ValueError(f"{path} is a file of no known format; wanted a dataset folder or an HDF5 file")
    if not path.is_dir():
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near)
        raise ValueError(f"{path}: no such dataset folder" + (f"; {hint}" if "mean" in hint else ""))
    for pattern in _PATTERNS:
        found = sorted(str(p.parent) for p in path.glob(pattern) if not p.parent.name.startswith("."))
        if found:
            return Path(_only_one(str(path), found))
    raise ValueError(f"{path}: no features.json here or below; wanted an RLDS dataset as tfds writes it")


def find_remote_version_folder(filesystem: AbstractFileSystem, path: str, url: str) -> str:
    """The same on an fsspec filesystem; `url` is how the user named `path`."""
    if filesystem.exists(posixpath.join(path, "features.json")):
        return path
    for pattern in _PATTERNS[1:]:
        found = filesystem.glob(posixpath.join(path, pattern))
        folders = sorted(posixpath.dirname(str(name)) for name in found)
        folders = [folder for folder in folders if not posixpath.basename(folder).startswith(".")]
        if folders:
            return _only_one(url, folders)
    if other := _other_format(filesystem, path):
        raise ValueError(f"{url} is {other}: of remote datasets only RLDS is read; copy it to a disk")
    raise ValueError(f"{url}: no features.json here or below; wanted an RLDS dataset as tfds writes it")


def _other_format(filesystem: AbstractFileSystem, path: str) -> str | None:
    """What lies there that would be read from a disk."""
    if filesystem.exists(posixpath.join(path, LEROBOT_INFO.as_posix())):
        return "a LeRobot dataset"
    names = [path] if filesystem.isfile(path) else filesystem.glob(posixpath.join(path, "*"))
    return "HDF5 data" if any(str(name).lower().endswith(HDF5_ENDINGS) for name in names) else None


def _only_one(where: str, folders: Sequence[str]) -> str:
    if len(folders) == 1:
        return folders[0]
    same = len({posixpath.dirname(folder) for folder in folders}) == 1
    what = "versions" if same and all(_is_version(folder) for folder in folders) else "datasets"
    raise ValueError(f"{where}: holds several {what}; name one of {', '.join(folders)}")


def _is_version(folder: str) -> bool:
    return posixpath.basename(folder).replace(".", "").isdigit()
