"""The numbers and texts of a LeRobot dataset as memory-mapped arrays, read from its parquet files once.

So a step's numbers cost no parquet page, a whole column no memory, and damage is found when the dataset is
opened. Images and wide arrays stay in the parquet files. Cached as the RLDS index is (`cache_folder`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla_adapt.episodes.cache_folder import cache_places, first_writable, publish
from vla_adapt.episodes.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.lerobot_meta import LeRobotFolder
from vla_adapt.episodes.parquet_columns import numbers, open_parquet, read_batches

FORMAT = 1
# A step's numbers are copied into the index up to this many; wider ones stay in the parquet files.
MAX_INDEXED_NUMBERS = 64
_PROGRESS_FILES = 200
_PROGRESS_ROWS = 2_000_000


@dataclass(frozen=True)
class LeRobotIndex:
    """Arrays [N, ...] over all steps of all episodes by field; texts as numbers into `strings`."""

    arrays: dict[str, np.ndarray]
    strings: dict[str, list[str]]
    columns: frozenset[str]


def open_lerobot_index(folder: LeRobotFolder, cache_dir: str | Path | None = None) -> LeRobotIndex:
    """Load the index of a dataset, building it first if there is none for these very files.

    Args:
        folder: the dataset.
        cache_dir: keep the index here; default beside the dataset, else in the user's cache.

    Raises:
        ValueError: a parquet file is missing or damaged, lacks a column that the first one has, or its rows
            are not the episodes that `meta` lists; names file and row.
    """
    for file in folder.data_files:
        if not file.is_file():
            raise ValueError(f"{file}: parquet file is missing; copy the dataset again")
    name = f"steps-{_digest(folder)}"
    places = cache_places(folder.path, cache_dir, kind="lerobot")
    for place in places:
        index = _load(place / name)
        if index is not None:
            return index
    place = first_writable(places)
    built = publish(
        place, name, write=lambda into: _build(folder, into), valid=lambda at: _load(at) is not None
    )
    _remove_stale(place, name)
    index = _load(built)
    assert index is not None, f"index just written to {built} cannot be read"
    return index


def _build(folder: LeRobotFolder, into: Path) -> None:
    present = frozenset(open_parquet(folder.data_files[0]).schema_arrow.names)
    wanted = {name: leaf for name, leaf in folder.leaves.items() if name in present and _is_indexed(leaf)}
    steps = int(folder.lengths.sum())
    files = {name: f"{i:03d}.npy" for i, name in enumerate(wanted)}
    filling = _Filling(wanted)
    for name, leaf in wanted.items():
        dtype, shape = (np.int32, ()) if leaf.kind is Kind.TEXT else (_dtype(leaf), leaf.shape)
        filling.arrays[name] = np.lib.format.open_memmap(
            into / files[name], mode="w+", dtype=dtype, shape=(steps, *shape)
        )
    bar = Progress(
        TextColumn("reading {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(),
        disable=len(folder.data_files) < _PROGRESS_FILES and steps < _PROGRESS_ROWS,
        transient=True,
    )
    with bar:
        for number in bar.track(range(len(folder.data_files)), description=folder.name):
            _read_file(folder, number, filling)
    strings = {name: list(table) for name, table in filling.strings.items()}
    manifest = {"format": FORMAT, "arrays": files, "strings": strings, "columns": sorted(present)}
    (into / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@dataclass
class _Filling:
    """The arrays being filled, the string tables, and the row of the whole dataset reached."""

    leaves: Mapping[str, LeafSpec]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    strings: dict[str, dict[str, int]] = field(default_factory=dict)
    row: int = 0

    def add(self, batch: pa.RecordBatch, where: str) -> None:
        for name, leaf in self.leaves.items():
            column = batch.column(name)
            if leaf.kind is Kind.TEXT:
                table = self.strings.setdefault(name, {})
                values = [table.setdefault(str(text), len(table)) for text in column.to_pylist()]
            else:
                values = numbers(column, leaf, f"{where}: column '{name}'")
            self.arrays[name][self.row : self.row + len(batch)] = values
        self.row += len(batch)


def _read_file(folder: LeRobotFolder, number: int, filling: _Filling) -> None:
    """Add the rows of one parquet file, checked against what `meta` says it holds."""
    file = folder.data_files[number]
    parquet = open_parquet(file)
    names, rows = set(parquet.schema_arrow.names), parquet.metadata.num_rows
    missing = sorted(filling.leaves.keys() - names)
    if missing:
        have = ", ".join(sorted(names))
        raise ValueError(f"{file}: no column '{missing[0]}', the first file has it; this one has {have}")
    episodes = np.flatnonzero(folder.data_file == number)
    lengths = folder.lengths[episodes]
    if rows != lengths.sum():
        raise ValueError(
            f"{file}: has {rows} rows, meta says {lengths.sum()} for episodes {episodes[0]}..{episodes[-1]}; "
            "copy the dataset again"
        )
    first = filling.row
    for batch in read_batches(file, list(filling.leaves)):
        filling.add(batch, str(file))
    expected = {
        "episode_index": np.repeat(episodes, lengths),
        "frame_index": np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths),
    }
    for name, values in expected.items():
        if name not in filling.arrays:
            continue
        wrong = filling.arrays[name][first : filling.row] != values
        if wrong.any():
            row = int(np.argmax(wrong))
            got = int(filling.arrays[name][first + row])
            raise ValueError(
                f"{file}: row {row} has {name} {got}, wanted {values[row]} (episode "
                f"{expected['episode_index'][row]} step {expected['frame_index'][row]}); out of order"
            )


def _is_indexed(leaf: LeafSpec) -> bool:
    small = leaf.kind is Kind.NUMBER and math.prod(leaf.shape) <= MAX_INDEXED_NUMBERS
    return small or leaf.kind is Kind.TEXT


def _dtype(leaf: LeafSpec) -> np.dtype:
    return np.dtype("float32" if leaf.dtype == "float64" else leaf.dtype)


def _load(place: Path) -> LeRobotIndex | None:
    """The cached index, or None when it is not there or not readable."""
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(place / file, mmap_mode="r") for name, file in manifest["arrays"].items()}
        return LeRobotIndex(arrays, manifest["strings"], frozenset(manifest["columns"]))
    except (OSError, ValueError, KeyError):
        return None


def _remove_stale(place: Path, name: str) -> None:
    """Delete indexes made for other states of the files (open memory maps stay valid)."""
    for entry in place.iterdir():
        if entry.name != name and re.fullmatch(r"steps-[0-9a-f]{16}", entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _digest(folder: LeRobotFolder) -> str:
    stats = [file.stat() for file in folder.data_files]
    files: Sequence[tuple[str, int, int]] = [
        (str(file.relative_to(folder.path)), stat.st_size, stat.st_mtime_ns)
        for file, stat in zip(folder.data_files, stats, strict=True)
    ]
    schema = sorted((name, str(leaf)) for name, leaf in folder.leaves.items())
    text = repr((FORMAT, files, schema, folder.lengths.tolist(), folder.data_file.tolist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
