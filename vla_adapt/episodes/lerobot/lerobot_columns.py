"""Columns and tables of a LeRobot v3.0 dataset as pyarrow writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped, UInt8
from PIL import Image

JPEG = b"\xff\xd8"
# Images beyond this in a row group make reading one of them slow; LeRobot itself has a row group an episode.
_GROUP_BYTES = 4 << 20


def number_column(values: Shaped[np.ndarray, "T ..."]) -> pa.Array:
    """[T] and [T, 1] as plain numbers, [T, n] as lists of n, more axes as lists of lists."""
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.shape[1:] == (1,):
        return column
    for axis, size in reversed(list(enumerate(values.shape[1:]))):
        if axis == 0:
            return pa.FixedSizeListArray.from_arrays(column, size)
        column = pa.ListArray.from_arrays(
            pa.array(np.arange(0, len(column) + 1, size, dtype=np.int32)), column
        )
    return column


def image_column(images: Sequence[bytes]) -> pa.Array:
    """Encoded images as Hugging Face's Image type keeps them."""
    paths = [f"frame-{i:06d}{'.jpg' if data[:2] == JPEG else '.png'}" for i, data in enumerate(images)]
    return pa.StructArray.from_arrays([pa.array(images, pa.binary()), pa.array(paths)], ["bytes", "path"])


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Lossless PNG of an RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """`tasks.parquet`: a pandas frame with the words as its index, named "task"."""
    described = [
        {"name": name, "field_name": name, "pandas_type": pandas_type, "numpy_type": kind, "metadata": None}
        for name, pandas_type, kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": described,
        "pandas_version": "2.0.0",
    }
    columns = {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    return pa.table(columns).replace_schema_metadata({"pandas": json.dumps(pandas)})


class ParquetParts:
    """Tables appended to numbered parquet files; a file this large is full and the next table begins another.

    Args:
        folder: of the files; they are named by `lerobot_place`.
        file_bytes: size of a file, about.
        chunk_files: files per chunk folder.
    """

    def __init__(self, folder: Path, file_bytes: int, chunk_files: int):
        self._folder, self._file_bytes, self._chunk_files = folder, file_bytes, chunk_files
        self._writer: pq.ParquetWriter | None = None
        self._sink: pa.NativeFile | None = None
        self._files = 0

    @property
    def next_file(self) -> int:
        """Number of the file that the next table goes to."""
        full = self._sink is None or self._sink.tell() >= self._file_bytes
        return self._files if full else self._files - 1

    def write(self, table: pa.Table) -> None:
        """Append a table, as one row group unless it is large."""
        if self.next_file == self._files:
            self.close()
            path = self._folder / lerobot_place(self._files, self._chunk_files, ".parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
            self._files += 1
        assert self._writer is not None
        rows = max(1, len(table) * _GROUP_BYTES // max(table.nbytes, 1))
        self._writer.write_table(table, row_group_size=rows)

    def close(self) -> None:
        """Finish the file being written."""
        writer, sink = self._writer, self._sink
        self._writer = self._sink = None
        if writer is not None and sink is not None:
            writer.close()
            sink.close()


def lerobot_place(file: int, chunk_files: int, suffix: str) -> str:
    """ "chunk-000/file-003.parquet": where file number `file` lies."""
    return f"chunk-{file // chunk_files:03d}/file-{file % chunk_files:03d}{suffix}"


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
