"""The cached index of an HDF5 dataset: its episodes, fields and small numbers, for these very files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.episodes.hdf5.hdf5_scan import Contents, scan
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable, one_at_a_time, publish
from vla_adapt.episodes.storage.damage import DamageLog, OnError, check_on_error
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

FORMAT = 3


@dataclass
class Hdf5Index:
    """What the files hold, and the indexed columns.

    Attributes:
        files: the files.
        contents: their episodes and fields.
        columns: number field -> its values in all steps of all episodes, memory-mapped.
        notes: damage found: (file, episode and reason; episodes left out by it).
    """

    files: list[Path]
    contents: Contents
    columns: dict[str, np.ndarray]
    notes: list[tuple[str, int]] = field(default_factory=list)

    def episode_name(self, episode: int) -> str:
        """ "file.hdf5/demo_3", or the file's name when it is one episode."""
        name, group = self.files[self.contents.file[episode]].name, self.contents.group[episode]
        return name if group == "/" else f"{name}/{group.rsplit('/', 1)[-1]}"


def open_hdf5_index(
    folder: Path,
    files: Sequence[Path],
    required: Sequence[str],
    cache_dir: str | Path | None = None,
    on_error: OnError = "error",
) -> Hdf5Index:
    """Load the index of these very files, building it first if there is none.

    Args:
        folder: the dataset's folder.
        files: its files.
        required: fields every episode must have, at equal length; the first one's length is the episode's.
        cache_dir: keep the index here; default beside the dataset, else in the user's cache.
        on_error: "error": refuse damaged data; "skip": leave damaged files and episodes out and note them.

    Raises:
        ValueError: a damaged file, an episode without a required field or with one of another length, shape
            or kind, named by file, episode and field; no episode left; nowhere to keep the index.
    """
    check_on_error(on_error)
    prefix = _prefix(files, required)
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = prefix + hashlib.sha256(repr((FORMAT, states)).encode()).hexdigest()[:16]
    places = cache_places(folder, cache_dir, kind="hdf5")
    index = next((found for place in places if (found := _load(place / name, files))), None)
    if index is None:
        place = first_writable(places)
        with one_at_a_time(place):
            index = _load(place / name, files) or _build(place, name, files, required, on_error)
            for stale in place.glob(f"{prefix}*"):
                if stale.name != name:
                    shutil.rmtree(stale, ignore_errors=True)
    if index.notes and on_error == "error":
        raise ValueError(index.notes[0][0])
    if not index.contents.group:
        reason = f": {index.notes[0][0]}" if index.notes else ""
        raise ValueError(f"{folder}: no readable episode{reason}")
    return index


def _build(
    place: Path, name: str, files: Sequence[Path], required: Sequence[str], on_error: OnError
) -> Hdf5Index:
    def write(folder: Path) -> None:
        log = DamageLog(on_error)
        contents = scan(files, required, folder, log)
        leaves = {
            field: [leaf.kind.value, leaf.shape, leaf.dtype, leaf.encoding]
            for field, leaf in contents.fields.items()
        }
        manifest = {**asdict(contents), "fields": leaves, "notes": log.notes}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    folder = publish(place, name, write, valid=lambda folder: _load(folder, files) is not None)
    index = _load(folder, files)
    assert index is not None, f"index just written to {folder} cannot be read"
    return index


def _load(folder: Path, files: Sequence[Path]) -> Hdf5Index | None:
    """The cached index, or None when it is not there or not readable."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        notes = [(text, int(lost)) for text, lost in manifest.pop("notes")]
        fields = {
            name: LeafSpec(Kind(kind), tuple(shape), dtype, encoding)
            for name, (kind, shape, dtype, encoding) in manifest["fields"].items()
        }
        contents = Contents(**{**manifest, "fields": fields})
        steps = sum(contents.length)
        columns = {
            name: _column(folder / file, steps, fields[name]) for name, file in contents.columns.items()
        }
        return Hdf5Index(list(files), contents, columns, notes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _column(file: Path, steps: int, leaf: LeafSpec) -> np.ndarray:
    shape = (steps, *leaf.shape)
    if not steps:
        return np.zeros(shape, leaf.dtype)
    return np.memmap(file, np.dtype(leaf.dtype), "r", shape=shape)


def _prefix(files: Sequence[Path], required: Sequence[str]) -> str:
    """What the names of all indexes of these files for these fields begin with, whatever their state."""
    stem = f"file-{files[0].stem}" if len(files) == 1 else "folder"
    wanted = hashlib.sha256(repr(list(required)).encode()).hexdigest()[:8]
    return f"hdf5-{re.sub(r'[^A-Za-z0-9_.]', '_', stem)}-{wanted}-"
