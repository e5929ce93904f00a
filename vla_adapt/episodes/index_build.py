"""Scan TFRecord shards once into flat arrays: where every image lies, and all small numbers themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from vla_adapt.episodes.example_proto import (
    BYTES,
    KIND_NAMES,
    Span,
    bytes_offsets,
    read_numbers,
    scan_example,
)
from vla_adapt.episodes.feature_spec import STEPS, Kind, LeafSpec
from vla_adapt.episodes.tfrecord import read_records

# A step's numbers are copied into the index up to this many; larger ones (embeddings) stay in the record.
MAX_INDEXED_NUMBERS = 64
_PROGRESS_BYTES = 500 << 20


@dataclass
class IndexArrays:
    """Arrays by name, and the distinct strings of the text fields by field.

    Names: "shard", "record", "length" [episodes]; per field "<path>:offset|size|value|id|span".
    """

    arrays: dict[str, np.ndarray]
    strings: dict[str, list[str]]


@dataclass
class _Columns:
    """Pieces of the arrays, one per record, and the string tables being filled."""

    pieces: dict[str, list[np.ndarray]] = field(default_factory=dict)
    strings: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, name: str, values: np.ndarray) -> None:
        self.pieces.setdefault(name, []).append(values)

    def string_id(self, path: str, text: str) -> int:
        table = self.strings.setdefault(path, {})
        return table.setdefault(text, len(table))


def build_index(
    shards: Sequence[tuple[Path, int]], leaves: Mapping[str, LeafSpec], verify_crc: bool = True
) -> IndexArrays:
    """Read every record of `shards`.

    Args:
        shards: (file, number of records it must hold).
        leaves: the schema.
        verify_crc: check each record's data CRC.

    Raises:
        ValueError: damaged file, a record that lacks a field of the schema, a wrong number of records;
            names file and record.
    """
    columns = _Columns()
    total = sum(path.stat().st_size for path, _ in shards)
    bar = Progress(
        TextColumn("indexing {task.description}"),
        BarColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        disable=total < _PROGRESS_BYTES,
        transient=True,
    )
    with bar:
        task = bar.add_task(shards[0][0].name.split(".")[0], total=total)
        for shard, (path, count) in enumerate(shards):
            found = 0
            for offset, record in read_records(path, verify_crc):
                try:
                    length = _scan_record(record, offset, leaves, columns)
                except ValueError as error:
                    raise ValueError(f"{path}: record {found} at byte {offset}: {error}") from None
                columns.add("shard", np.array([shard], np.int32))
                columns.add("record", np.array([[offset, len(record)]], np.int64))
                columns.add("length", np.array([length], np.int64))
                bar.advance(task, len(record))
                found += 1
            if found != count:
                raise ValueError(
                    f"{path}: has {found} episodes, dataset_info.json says {count}; copy it again"
                )
    arrays = {name: np.concatenate(pieces) for name, pieces in columns.pieces.items()}
    return IndexArrays(arrays, {path: list(table) for path, table in columns.strings.items()})


def _scan_record(record: bytes, base: int, leaves: Mapping[str, LeafSpec], columns: _Columns) -> int:
    """Add one record's fields to `columns`; returns the number of steps."""
    spans = scan_example(record)
    length = _episode_length(record, spans, leaves)
    for path, leaf in leaves.items():
        if leaf.kind is Kind.RAGGED:
            continue
        if path not in spans:
            raise ValueError(f"no field '{path}'; it has {', '.join(sorted(spans))}")
        span, count = spans[path], length if path.startswith(STEPS) else 1
        if leaf.kind is Kind.NUMBER:
            _add_numbers(record, base, path, leaf, span, count, columns)
            continue
        if span.kind != BYTES:
            raise ValueError(f"field '{path}' holds {KIND_NAMES[span.kind]}, wanted {leaf}")
        found = bytes_offsets(record, span)
        if len(found) != count:
            raise ValueError(f"field '{path}' has {len(found)} values, wanted {count}")
        if leaf.kind is Kind.IMAGE:
            places = np.array(found, np.int64).reshape(-1, 2)
            columns.add(f"{path}:offset", places[:, 0] + base)
            columns.add(f"{path}:size", places[:, 1].astype(np.int32))
        else:
            texts = (record[at : at + size].decode("utf-8", "replace") for at, size in found)
            ids = [columns.string_id(path, text) for text in texts]
            columns.add(f"{path}:id", np.array(ids, np.int32))
    return length


def _add_numbers(
    record: bytes, base: int, path: str, leaf: LeafSpec, span: Span, count: int, columns: _Columns
) -> None:
    width = math.prod(leaf.shape)
    if width > MAX_INDEXED_NUMBERS:
        columns.add(f"{path}:span", np.array([[span.kind, span.start + base, span.end + base]], np.int64))
        return
    columns.add(f"{path}:value", shape_numbers(read_numbers(record, span), path, leaf, count))


def shape_numbers(numbers: np.ndarray, path: str, leaf: LeafSpec, count: int) -> np.ndarray:
    """Stored numbers [count * width] as [count, *shape] of the feature's dtype (float64 as stored, float32).

    Raises:
        ValueError: not the declared count.
    """
    width = math.prod(leaf.shape)
    if numbers.size != count * width:
        raise ValueError(f"field '{path}' has {numbers.size} numbers, wanted {count} steps x {width}")
    dtype = np.dtype("float32" if leaf.dtype in ("float64", "bfloat16") else leaf.dtype)
    if numbers.dtype.kind != dtype.kind and (numbers.dtype.kind == "f" or dtype.kind == "f"):
        raise ValueError(f"field '{path}' holds {numbers.dtype}, the schema says {leaf.dtype}")
    return numbers.astype(dtype).reshape(count, *leaf.shape)


def _episode_length(record: bytes, spans: Mapping[str, Span], leaves: Mapping[str, LeafSpec]) -> int:
    """Number of steps, from the cheapest step field there is."""
    in_steps = [(path, leaf) for path, leaf in leaves.items() if path.startswith(STEPS) and path in spans]
    for path, leaf in in_steps:
        if leaf.kind is Kind.NUMBER and math.prod(leaf.shape):
            span = spans[path]
            if span.kind == BYTES:
                raise ValueError(f"field '{path}' holds bytes, wanted {leaf}")
            return read_numbers(record, span).size // math.prod(leaf.shape)
    for path, leaf in in_steps:
        if leaf.kind is not Kind.RAGGED:
            return len(bytes_offsets(record, spans[path]))
    raise ValueError("no step fields; wanted an RLDS dataset with 'steps'")
