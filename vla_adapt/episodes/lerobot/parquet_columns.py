"""Columns of parquet files as numpy arrays; files are memory-mapped and read a row group at a time.

pyarrow and not Hugging Face `datasets`: that one takes 70 MB more to import and would write every image a
second time, into its Arrow cache, before the first can be read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from vla_adapt.episodes.storage.feature_spec import LeafSpec

_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_BATCH_ROWS = 16_384
_REMEDY = "copy the dataset again"


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file, memory-mapped.

    Raises:
        ValueError: missing or damaged; names the file.
    """
    if not file.is_file():
        raise ValueError(f"{file}: parquet file is missing; {_REMEDY}")
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: not a readable parquet file ({_line(error)}); {_REMEDY}") from None


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole (small) parquet file; raises as `open_parquet`."""
    parquet = open_parquet(file)
    try:
        return parquet.read(columns=None if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: not a readable parquet file ({_line(error)}); {_REMEDY}") from None


def read_batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file in order, some thousands at a time; raises as `open_parquet`."""
    parquet = open_parquet(file)
    try:
        yield from parquet.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: not a readable parquet file ({_line(error)}); {_REMEDY}") from None


def numbers(column: pa.Array, leaf: LeafSpec, where: str, exact: bool = False) -> Shaped[np.ndarray, "N ..."]:
    """A column as [rows, *shape] of the leaf's dtype (float64 as float32, unless `exact`).

    Raises:
        ValueError: empty values, another kind of number or another size than the leaf says; names `where`.
    """
    rows = len(column)
    flat = _flat(column)
    if flat.null_count:
        raise ValueError(f"{where} has {flat.null_count} empty values, wanted numbers; repair the dataset")
    if not any(check(flat.type) for check in _NUMBERS):
        raise ValueError(f"{where} holds {column.type}, info.json says {leaf}")
    values = flat.to_numpy(zero_copy_only=False)
    dtype = np.dtype("float32" if leaf.dtype == "float64" and not exact else leaf.dtype)
    if dtype.kind != "f" and values.dtype.kind == "f":
        raise ValueError(f"{where} holds {column.type}, info.json says {leaf}")
    if values.size != rows * int(np.prod(leaf.shape)):
        raise ValueError(f"{where} has {values.size} numbers in {rows} rows, info.json says {leaf}")
    return values.astype(dtype, copy=False).reshape(rows, *leaf.shape)


def _flat(column: pa.Array) -> pa.Array:
    """The numbers inside nested lists; an empty list at any level counts as an empty value."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif any(check(column.type) for check in _LISTS) and not column.null_count:
            column = column.flatten()
        else:
            return column


class _Group(NamedTuple):
    """One row group of an open file: the column's values, and the row of the file it begins at."""

    first: int
    values: pa.Array


class RowGroups:
    """Single values out of parquet files; keeps the most recently used files and row groups.

    Args:
        kept_files: how many files stay open.
        kept_bytes: how much of the columns stays in memory.
    """

    def __init__(self, kept_files: int = 32, kept_bytes: int = 16 << 20):
        self._limits = kept_files, kept_bytes
        self._files: OrderedDict[Path, tuple[pq.ParquetFile, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[Path, str, int], _Group] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def value(self, file: Path, column: str, row: int) -> Any:
        """The Python value of a column in one row; raises as `open_parquet`."""
        with self._lock:
            group = self._group(file, column, row)
        return group.values[row - group.first].as_py()

    def slice(self, file: Path, column: str, first: int, count: int) -> pa.Array:
        """The column in `count` rows; raises as `open_parquet`."""
        parts = []
        row, end = first, first + count
        while row < end:
            with self._lock:
                group = self._group(file, column, row)
            part = group.values[row - group.first : end - group.first]
            parts.append(part)
            row += len(part)
        return pa.concat_arrays(parts)

    def _group(self, file: Path, column: str, row: int) -> _Group:
        parquet, ends = self._file(file)
        if row >= ends[-1]:
            raise ValueError(f"{file}: row {row} of {ends[-1]} asked; meta and data disagree, {_REMEDY}")
        number = int(np.searchsorted(ends, row, side="right"))
        key = file, column, number
        group = self._groups.get(key)
        if group is None:
            values = _read_group(parquet, file, column, number)
            group = self._groups[key] = _Group(int(ends[number]) - len(values), values)
            self._bytes += values.nbytes
        self._groups.move_to_end(key)
        while self._bytes > self._limits[1] and len(self._groups) > 1:
            self._bytes -= self._groups.popitem(last=False)[1].values.nbytes
        return group

    def _file(self, file: Path) -> tuple[pq.ParquetFile, np.ndarray]:
        found = self._files.get(file)
        if found is None:
            parquet = open_parquet(file)
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            found = self._files[file] = parquet, np.cumsum(sizes or [0])
        self._files.move_to_end(file)
        while len(self._files) > self._limits[0]:
            self._files.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"kept_files": self._limits[0], "kept_bytes": self._limits[1]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _read_group(parquet: pq.ParquetFile, file: Path, column: str, number: int) -> pa.Array:
    try:
        table = parquet.read_row_group(number, columns=[column], use_threads=False)
        return pa.concat_arrays(table.column(column).chunks)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{file}: column '{column}' cannot be read ({_line(error)}); {_REMEDY}") from None


def _line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
