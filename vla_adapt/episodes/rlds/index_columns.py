"""Arrays that grow record by record straight onto the disk as `.npy` files: memory stays flat at any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32, Shaped

# Distinct strings remembered per field while indexing; past this a repeated string is stored again.
MAX_REMEMBERED_STRINGS = 1 << 16
MAX_REMEMBERED_BYTES = 16 << 20


class ColumnFiles:
    """Named arrays being appended to, each a `.npy` file of `folder`; close (leave the context) to finish.

    Raises:
        OSError: the disk is full, on any append or on closing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._columns: dict[str, _Column] = {}

    def __enter__(self) -> ColumnFiles:
        return self

    def declare(self, name: str, dtype: np.dtype | type, tail: Sequence[int] = ()) -> None:
        """Begin the array `name` [0, *tail]."""
        path = self._folder / f"{len(self._columns):03d}.npy"
        self._columns[name] = _Column(path, np.dtype(dtype), tuple(tail))

    def append(self, name: str, values: Shaped[np.ndarray, "_ ..."]) -> None:
        """Add rows [n, *tail]."""
        self._columns[name].append(values)

    def rows(self, name: str) -> int:
        """Rows appended so far."""
        return self._columns[name].rows

    def files(self) -> dict[str, str]:
        """Array name -> file name."""
        return {name: column.path.name for name, column in self._columns.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in self._columns.values():
            column.close(finish=kind is None)


class _Column:
    """One `.npy` file; the header is written again with the final length when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype, tail: tuple[int, ...]):
        self.path, self.rows = path, 0
        self._dtype, self._tail = dtype, tail
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        assert values.shape[1:] == self._tail, f"{self.path}: {values.shape} onto [n, {self._tail}]"
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self.rows += len(values)

    def close(self, finish: bool) -> None:
        if not finish:
            # After a failed write the buffer cannot be flushed either: let go of it without a second error.
            try:
                self._file.close()
            except OSError:
                self._file.raw.close()  # type: ignore[attr-defined]
            return
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header for the longest first dimension, so the one written last has the same size.
        header = {
            "shape": (self.rows, *self._tail),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(self._dtype),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class StringTable:
    """Distinct strings of one field on disk: "<field>:text" holds their bytes, ":text_end" where they end."""

    def __init__(self, columns: ColumnFiles, field: str):
        self._columns, self._field = columns, field
        self._ids: dict[bytes, int] = {}
        self._remembered = 0
        columns.declare(f"{field}:text", np.uint8)
        columns.declare(f"{field}:text_end", np.int64)

    def ids_of(self, texts: Sequence[bytes]) -> Int32[np.ndarray, " N"]:
        """Numbers of strings in the table, which grows by those that are new."""
        if len(self._ids) >= MAX_REMEMBERED_STRINGS or self._remembered > MAX_REMEMBERED_BYTES:
            self._ids.clear()
            self._remembered = 0
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        first = self._columns.rows(f"{self._field}:text_end")
        begin = self._columns.rows(f"{self._field}:text")
        self._columns.append(f"{self._field}:text", np.frombuffer(b"".join(new), np.uint8))
        ends = begin + np.cumsum([len(text) for text in new], dtype=np.int64)
        self._columns.append(f"{self._field}:text_end", ends)
        self._ids.update(zip(new, range(first, first + len(new)), strict=True))
        self._remembered += int(ends[-1]) - begin if new else 0
        return np.array([self._ids[text] for text in texts], np.int32)
