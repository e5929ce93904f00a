"""The per-step index of an RLDS split, built once and cached: beside the dataset, else in the user's cache.

A cache entry is a folder of `.npy` arrays plus `manifest.json`, named by a digest of the shards' sizes and
modification times, so a changed dataset never meets an old index. Entries appear by one rename: any number of
processes may ask at once, one builds and all of them read the same files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from vla_adapt.episodes.rlds.index_build import build_index
from vla_adapt.episodes.rlds.remote_folder import cache_folder
from vla_adapt.episodes.rlds.shards import RldsFolder, check_complete
from vla_adapt.episodes.rlds.unpack import unpack_shards
from vla_adapt.episodes.storage.byte_source import ShardFile
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable, one_at_a_time, publish
from vla_adapt.episodes.storage.damage import DamageLog, OnError, check_on_error

FORMAT = 2


@dataclass
class StepIndex:
    """A loaded index: memory-mapped arrays by name, shard files, and where it is cached.

    Attributes:
        folder: of the cache entry.
        shards: files the offsets point into.
        arrays: see `build_index`.
        notes: damage found when it was built: (file, record and reason; episodes left out by it).
    """

    folder: Path
    shards: list[ShardFile]
    arrays: dict[str, np.ndarray]
    notes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode."""
        return self.arrays["length"]

    @property
    def bytes_per_frame(self) -> float:
        """Size of the index over the number of steps."""
        return sum(array.nbytes for array in self.arrays.values()) / max(int(self.lengths.sum()), 1)

    def release(self, *names: str) -> None:
        """Take arrays, by default all, out of this process's memory until they are read again.

        They stay in the system's page cache: a mapped page counts as the process's own, however long ago it
        was read, so a process would seem to grow with the dataset.
        """
        for name in names or self.arrays:
            mapped: Any = self.arrays[name]
            while isinstance(mapped, np.ndarray):
                mapped = mapped.base
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def text(self, path: str, number: int) -> str:
        """String `number` of a text field's table; what is not UTF-8 in it is replaced."""
        ends = self.arrays[f"{path}:text_end"]
        start = int(ends[number - 1]) if number else 0
        return self.arrays[f"{path}:text"][start : int(ends[number])].tobytes().decode("utf-8", "replace")


def open_index(
    dataset: RldsFolder,
    split: str,
    cache_dir: str | Path | None = None,
    verify_crc: bool = True,
    on_error: OnError = "error",
    image_crc: bool = False,
) -> StepIndex:
    """Load the index of a split, building it first if there is none for these very files.

    Args:
        dataset: the version folder.
        split: split name.
        cache_dir: keep the index here; default beside the dataset, or, if that is read-only, in
            $VLA_ADAPT_CACHE or ~/.cache/vla_adapt.
        verify_crc: check the records' CRCs when building; an index built without does not count then.
        on_error: "error": refuse damaged data; "skip": leave damaged episodes out and note them.
        image_crc: the index must hold every image's CRC.

    Raises:
        ValueError: damaged data, no episode left, or no folder (or room) to write to.
    """
    check_on_error(on_error)
    shards = dataset.shards(split)
    if on_error == "error":
        check_complete(shards)
    key = _digest(dataset, shards)
    places = (
        [cache_folder(dataset.remote.url, cache_dir)]
        if dataset.remote
        else cache_places(dataset.path, cache_dir)
    )
    names = _names(split, key, verify_crc, image_crc)
    index = _find(places, names, shards)
    if index is None:
        place = first_writable(places)
        with one_at_a_time(place):
            index = _find([place], names, shards)
            if index is None:
                unpacked = unpack_shards(shards, place, dataset.payload_bytes.get(split))
                index = _build(dataset, unpacked, place, names[0], image_crc, verify_crc, on_error)
                _remove_stale(place, split, key)
    if index.notes and on_error == "error":
        raise ValueError(index.notes[0][0])
    if not len(index.lengths):
        reason = f": {index.notes[0][0]}" if index.notes else ""
        raise ValueError(f"{dataset.origin}: split '{split}' has no readable episode{reason}")
    return index


def _build(
    dataset: RldsFolder,
    shards: list[ShardFile],
    place: Path,
    name: str,
    image_crc: bool,
    verify_crc: bool,
    on_error: OnError,
) -> StepIndex:
    def write(folder: Path) -> None:
        log = DamageLog(on_error)
        files = build_index(shards, dataset.leaves, folder, verify_crc, image_crc, log)
        manifest = {
            "format": FORMAT,
            "arrays": files,
            "notes": log.notes,
            "unpacked": {str(i): shard.data for i, shard in enumerate(shards) if shard.is_unpacked},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    folder = publish(place, name, write, valid=lambda folder: _load(folder, shards) is not None)
    index = _load(folder, shards)
    assert index is not None, f"index just written to {folder} cannot be read"
    return index


def _find(places: Sequence[Path], names: Sequence[str], shards: list[ShardFile]) -> StepIndex | None:
    for place in places:
        for name in names:
            index = _load(place / name, shards)
            if index is not None:
                return index
    return None


def _names(split: str, key: str, verify_crc: bool, image_crc: bool) -> list[str]:
    """Cache entries that will do, the one to build first: more than was asked for is as good."""
    suffixes = [
        ("-unchecked" if unchecked else "") + ("-images" if images else "")
        for unchecked in ((False,) if verify_crc else (True, False))
        for images in ((True,) if image_crc else (False, True))
    ]
    return [f"{split}-{key}{suffix}" for suffix in suffixes]


def _remove_stale(place: Path, split: str, key: str) -> None:
    """Delete indexes of this split made for other states of its files (open memory maps stay valid)."""
    for entry in place.iterdir():
        match = re.fullmatch(rf"{re.escape(split)}-([0-9a-f]{{16}})(-unchecked)?(-images)?", entry.name)
        if match and match[1] != key:
            shutil.rmtree(entry, ignore_errors=True)


def _load(folder: Path, shards: list[ShardFile]) -> StepIndex | None:
    """The cached index, or None when it is not there, not readable, or its unpacked shards are gone."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        arrays = {
            # Plain views: indexing a np.memmap runs Python code each time.
            name: np.load(folder / file, mmap_mode="r").view(np.ndarray)
            for name, file in manifest["arrays"].items()
        }
        unpacked: dict[str, str] = manifest["unpacked"]
        if not all(Path(data).is_file() for data in unpacked.values()):
            return None
        files = [shard.reading(unpacked.get(str(i), shard.location)) for i, shard in enumerate(shards)]
        return StepIndex(folder, files, arrays, [(text, int(lost)) for text, lost in manifest["notes"]])
    except (OSError, ValueError, KeyError):
        return None


def _digest(dataset: RldsFolder, shards: Sequence[ShardFile]) -> str:
    files = [(Path(shard.location).name, shard.size, shard.mark, shard.count) for shard in shards]
    schema = sorted((path, repr(leaf)) for path, leaf in dataset.leaves.items())
    return hashlib.sha256(repr((FORMAT, files, schema)).encode()).hexdigest()[:16]
