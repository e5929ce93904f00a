"""The per-step index of an RLDS split, built once and cached: beside the dataset, else in the user's cache.

A cache entry is a folder of `.npy` arrays plus `manifest.json`, named by a digest of the shards' sizes and
modification times, so a changed dataset never meets an old index. Entries appear by one rename: any number of
processes may build at once, the first one wins and all of them read the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.episodes.index_build import IndexArrays, build_index
from vla_adapt.episodes.shards import RldsFolder

FORMAT = 1
BESIDE = ".vla_adapt_index"
CACHE_VARIABLE = "VLA_ADAPT_CACHE"


@dataclass
class StepIndex:
    """A loaded index: memory-mapped arrays by name, string tables, shard files, and where it is cached."""

    folder: Path
    shards: list[Path]
    arrays: dict[str, np.ndarray]
    strings: dict[str, list[str]]

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, [episodes] int64."""
        return self.arrays["length"]


def open_index(
    dataset: RldsFolder, split: str, cache_dir: str | Path | None = None, verify_crc: bool = True
) -> StepIndex:
    """Load the index of a split, building it first if there is none for these very files.

    Args:
        dataset: the version folder.
        split: split name.
        cache_dir: keep the index here; default beside the dataset, or, if that is read-only, in
            $VLA_ADAPT_CACHE or ~/.cache/vla_adapt.
        verify_crc: check the records' CRCs when building; an index built without does not count then.

    Raises:
        ValueError: damaged data, or no folder to write to.
    """
    shards = dataset.shards(split)
    key = _digest(dataset, shards)
    places = _cache_places(dataset.path, cache_dir)
    checked, unchecked = f"{split}-{key}", f"{split}-{key}-unchecked"
    files = [path for path, _ in shards]
    for place in places:
        for name in (checked,) if verify_crc else (checked, unchecked):
            index = _load(place / name, files)
            if index is not None:
                return index
    place = _first_writable(places)
    built = build_index(shards, dataset.leaves, verify_crc)
    folder = publish(
        place,
        checked if verify_crc else unchecked,
        write=lambda folder: _save(built, folder),
        valid=lambda folder: _load(folder, files) is not None,
    )
    _remove_stale(place, split, key)
    index = _load(folder, files)
    assert index is not None, f"index just written to {folder} cannot be read"
    return index


def publish(place: Path, name: str, write: Callable[[Path], None], valid: Callable[[Path], bool]) -> Path:
    """Make `place/name` appear with all that `write` puts into it; keep what another put there if `valid`."""
    final = place / name
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=place))
    try:
        new = work / "new"
        new.mkdir()
        write(new)
        try:
            new.rename(final)
        except OSError:
            if not valid(final):
                final.rename(work / "damaged")
                new.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _remove_stale(place: Path, split: str, key: str) -> None:
    """Delete indexes of this split made for other states of its files (open memory maps stay valid)."""
    for entry in place.iterdir():
        match = re.fullmatch(rf"{re.escape(split)}-([0-9a-f]{{16}})(-unchecked)?", entry.name)
        if match and match[1] != key:
            shutil.rmtree(entry, ignore_errors=True)


def _save(built: IndexArrays, folder: Path) -> None:
    files = {name: f"{i:03d}.npy" for i, name in enumerate(sorted(built.arrays))}
    for name, file in files.items():
        np.save(folder / file, built.arrays[name])
    manifest = {"format": FORMAT, "arrays": files, "strings": built.strings}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _load(folder: Path, shards: list[Path]) -> StepIndex | None:
    """The cached index, or None when it is not there or not readable."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / file, mmap_mode="r") for name, file in manifest["arrays"].items()}
        return StepIndex(folder, shards, arrays, manifest["strings"])
    except (OSError, ValueError, KeyError):
        return None


def _digest(dataset: RldsFolder, shards: Sequence[tuple[Path, int]]) -> str:
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns, count) for path, count in shards]
    schema = sorted((path, str(leaf), leaf.encoding) for path, leaf in dataset.leaves.items())
    return hashlib.sha256(repr((FORMAT, files, schema)).encode()).hexdigest()[:16]


def _cache_places(dataset: Path, cache_dir: str | Path | None) -> list[Path]:
    """Where an index may lie, in order of preference."""
    label = f"{dataset.parent.name}-{hashlib.sha256(str(dataset.resolve()).encode()).hexdigest()[:12]}"
    if cache_dir is not None:
        return [Path(cache_dir) / "rlds" / label]
    home = os.environ.get(CACHE_VARIABLE)
    user = Path(home) if home else Path.home() / ".cache" / "vla_adapt"
    return [dataset / BESIDE, user / "rlds" / label]


def _first_writable(places: Sequence[Path]) -> Path:
    for place in places:
        try:
            if _marked_read_only(place):
                continue
            place.mkdir(parents=True, exist_ok=True)
            Path(tempfile.mkdtemp(prefix=".building-", dir=place)).rmdir()
            return place
        except OSError:
            continue
    tried = ", ".join(str(place) for place in places)
    raise ValueError(f"no writable folder for the step index (tried {tried}); set {CACHE_VARIABLE} to one")


def _marked_read_only(place: Path) -> bool:
    """Whether the nearest existing folder has no write bit at all: root could write there, but should not."""
    while not place.exists():
        place = place.parent
    return not place.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
