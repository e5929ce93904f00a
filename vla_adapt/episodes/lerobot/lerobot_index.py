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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from vla_adapt.episodes.lerobot.lerobot_meta import LeRobotFolder
from vla_adapt.episodes.lerobot.parquet_columns import numbers, open_parquet, read_batches
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable, publish
from vla_adapt.episodes.storage.damage import OnError, check_on_error
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.progress_bar import progress_bar

FORMAT = 2
# A step's numbers are copied into the index up to this many; wider ones stay in the parquet files.
MAX_INDEXED_NUMBERS = 64


@dataclass(frozen=True)
class LeRobotIndex:
    """What the parquet files hold.

    Attributes:
        name: differs when the files do.
        arrays: [N, ...] over all steps of all episodes by field; texts as numbers into `strings`. Zeros in
            episodes of damaged files.
        strings: texts of each text field.
        columns: names of the files' columns.
        damaged: (number in `folder.data_files`, what is wrong with the file).
    """

    name: str
    arrays: dict[str, np.ndarray]
    strings: dict[str, list[str]]
    columns: frozenset[str]
    damaged: tuple[tuple[int, str], ...] = ()


def open_lerobot_index(
    folder: LeRobotFolder, cache_dir: str | Path | None = None, on_error: OnError = "error"
) -> LeRobotIndex:
    """Load the index of a dataset, building it first if there is none for these very files.

    Args:
        folder: the dataset.
        cache_dir: keep the index here; default beside the dataset, else in the user's cache.
        on_error: "error": refuse damaged files; "skip": note them in `damaged`.

    Raises:
        ValueError: a parquet file is missing or damaged, lacks a column that the first one has, or its rows
            are not the episodes that `meta` lists; names file and row. Or no file is readable.
    """
    check_on_error(on_error)
    for file in folder.data_files:
        if on_error == "error" and not file.is_file():
            raise ValueError(f"{file}: parquet file is missing; copy the dataset again")
    name = f"steps-{_digest(folder)}"
    places = cache_places(folder.path, cache_dir, kind="lerobot")
    index = next((found for place in places if (found := _load(place / name)) is not None), None)
    if index is None:
        place = first_writable(places)
        built = publish(
            place,
            name,
            write=lambda into: _build(folder, into, on_error),
            valid=lambda at: _load(at) is not None,
        )
        _remove_stale(place, name)
        index = _load(built)
        assert index is not None, f"index just written to {built} cannot be read"
    if index.damaged and on_error == "error":
        raise ValueError(index.damaged[0][1])
    return index


def _build(folder: LeRobotFolder, into: Path, on_error: OnError) -> None:
    present = _columns(folder, on_error)
    wanted = {name: leaf for name, leaf in folder.leaves.items() if name in present and _is_indexed(leaf)}
    steps = int(folder.lengths.sum())
    files = {name: f"{i:03d}.npy" for i, name in enumerate(wanted)}
    filling, damaged = _Filling(wanted), []
    for name, leaf in wanted.items():
        dtype, shape = (np.int32, ()) if leaf.kind is Kind.TEXT else (_dtype(leaf), leaf.shape)
        filling.arrays[name] = np.lib.format.open_memmap(
            into / files[name], mode="w+", dtype=dtype, shape=(steps, *shape)
        )
    with progress_bar(f"indexing {folder.name}", steps, "steps") as bar:
        for number, file in enumerate(folder.data_files):
            bar.note, bar.done = file.name, filling.row
            end = filling.row + int(folder.lengths[folder.data_file == number].sum())
            try:
                _read_file(folder, number, filling)
            except ValueError as error:
                if on_error == "error":
                    raise
                damaged.append((number, str(error)))
                filling.blank(end)
    strings = {name: list(table) for name, table in filling.strings.items()}
    manifest = {
        "format": FORMAT,
        "arrays": files,
        "strings": strings,
        "columns": sorted(present),
        "damaged": damaged,
    }
    (into / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _columns(folder: LeRobotFolder, on_error: OnError) -> frozenset[str]:
    """Names of the columns of the first readable file."""
    first: ValueError | None = None
    for file in folder.data_files:
        try:
            return frozenset(open_parquet(file).schema_arrow.names)
        except ValueError as error:
            if on_error == "error":
                raise
            first = first or error
    raise ValueError(f"{folder.path}: no readable parquet file: {first}")


@dataclass
class _Filling:
    """The arrays being filled, the string tables, the row reached, and where the file in hand began."""

    leaves: Mapping[str, LeafSpec]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    strings: dict[str, dict[str, int]] = field(default_factory=dict)
    row: int = 0
    start: int = 0

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

    def blank(self, end: int) -> None:
        """Zeros up to row `end`, from wherever the file in hand has begun or stopped."""
        for name in self.leaves:
            self.arrays[name][self.start : end] = 0
        self.row = end


def _read_file(folder: LeRobotFolder, number: int, filling: _Filling) -> None:
    """Add the rows of one parquet file, checked against what `meta` says it holds."""
    file, filling.start = folder.data_files[number], filling.row
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
        damaged = tuple((int(number), str(text)) for number, text in manifest["damaged"])
        return LeRobotIndex(place.name, arrays, manifest["strings"], frozenset(manifest["columns"]), damaged)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _remove_stale(place: Path, name: str) -> None:
    """Delete indexes made for other states of the files (open memory maps stay valid)."""
    for entry in place.iterdir():
        if entry.name != name and re.fullmatch(r"steps-[0-9a-f]{16}", entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _state(file: Path) -> tuple[int, int]:
    """Size and time of a file; a missing one has neither."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _digest(folder: LeRobotFolder) -> str:
    files = [(str(file.relative_to(folder.path)), *_state(file)) for file in folder.data_files]
    schema = sorted((name, str(leaf)) for name, leaf in folder.leaves.items())
    text = repr((FORMAT, files, schema, folder.lengths.tolist(), folder.data_file.tolist()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
