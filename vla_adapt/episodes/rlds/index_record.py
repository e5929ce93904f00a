"""One `tf.train.Example` into the index: which arrays each leaf of the schema gets, and their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vla_adapt.episodes.rlds.example_proto import (
    BYTES,
    KIND_NAMES,
    Buffer,
    Span,
    bytes_offsets,
    read_numbers,
    scan_example,
)
from vla_adapt.episodes.rlds.index_columns import ColumnFiles, StringTable
from vla_adapt.episodes.rlds.leaf_values import read_dtype, read_values, stored_keys
from vla_adapt.episodes.rlds.tfrecord import crc32c
from vla_adapt.episodes.storage.feature_spec import STEPS, Kind, LeafSpec

# A step's numbers are copied into the index up to this many; larger ones (embeddings) stay in the record.
MAX_INDEXED_NUMBERS = 64

Spans = Mapping[str, Span]


class RecordColumns:
    """The index arrays of the fields, appended to record by record.

    A field of small fixed-size numbers gets "<path>:value" [N, *shape]; an image "<path>:offset", ":size"
    and, if asked, ":crc" [N]; a text "<path>:id" [N] into a string table (N: one row a step, or an episode
    for episode-level fields). Any other field stays in the record: each list it is stored in gets
    "<key>:span" [episodes, 3]: kind (0: not in this record), first and end byte in the shard.

    Args:
        columns: where the arrays go.
        leaves: the schema.
        image_crc: store every image's CRC32C.
    """

    def __init__(self, columns: ColumnFiles, leaves: Mapping[str, LeafSpec], image_crc: bool = False):
        self._columns, self._leaves, self._image_crc = columns, leaves, image_crc
        self._strings: dict[str, StringTable] = {}
        for path, leaf in leaves.items():
            self._declare(path, leaf)
        in_steps = [(path, leaf) for path, leaf in leaves.items() if path.startswith(STEPS)]
        self._counted_by = sorted(in_steps, key=_cost_of_counting)

    def add(self, record: Buffer, base: int) -> int:
        """Append one record, or, when it is not as the schema says, nothing.

        Args:
            record: its bytes.
            base: where they begin in the shard.

        Returns:
            The number of steps.

        Raises:
            ValueError: not an Example, a field is missing or holds something else; names the field.
        """
        spans = scan_example(record)
        length = self._count(record, spans)
        rows: list[tuple[str, np.ndarray]] = []
        texts: list[tuple[str, list[bytes]]] = []
        for path, leaf in self._leaves.items():
            count = length if path.startswith(STEPS) else 1
            if _stays(leaf):
                rows += [(f"{key}:span", _span(key, leaf, spans, base)) for key in stored_keys(path, leaf)]
            elif leaf.kind is Kind.NUMBER:
                rows.append((f"{path}:value", _values(path, leaf, length, record, spans)))
            else:
                found = _places(path, leaf, count, record, spans)
                if leaf.kind is Kind.TEXT:
                    texts.append((path, [bytes(record[at : at + size]) for at, size in found]))
                else:
                    rows += self._image_rows(path, found, record, base)
        for name, values in rows:
            self._columns.append(name, values)
        for path, strings in texts:
            self._columns.append(f"{path}:id", self._strings[path].ids_of(strings))
        return length

    def _count(self, record: Buffer, spans: Spans) -> int:
        """Number of steps, from the easiest field that tells."""
        for path, leaf in self._counted_by:
            count = _count_steps(path, leaf, record, spans)
            if count is not None:
                return count
        raise ValueError("no step field tells the number of steps; wanted an RLDS dataset with 'steps'")

    def _declare(self, path: str, leaf: LeafSpec) -> None:
        columns = self._columns
        if _stays(leaf):
            for key in stored_keys(path, leaf):
                columns.declare(f"{key}:span", np.int64, (3,))
        elif leaf.kind is Kind.NUMBER:
            columns.declare(f"{path}:value", read_dtype(leaf), leaf.shape)
        elif leaf.kind is Kind.TEXT:
            columns.declare(f"{path}:id", np.int32)
            self._strings[path] = StringTable(columns, path)
        else:
            columns.declare(f"{path}:offset", np.int64)
            columns.declare(f"{path}:size", np.int32)
            if self._image_crc:
                columns.declare(f"{path}:crc", np.uint32)

    def _image_rows(
        self, path: str, found: list[tuple[int, int]], record: Buffer, base: int
    ) -> list[tuple[str, np.ndarray]]:
        places = np.array(found, np.int64).reshape(-1, 2)
        rows = [(f"{path}:offset", places[:, 0] + base), (f"{path}:size", places[:, 1].astype(np.int32))]
        if self._image_crc:
            view = memoryview(record)
            sums = [crc32c(view[at : at + size]) for at, size in found]
            rows.append((f"{path}:crc", np.array(sums, np.uint32)))
        return rows


def _stays(leaf: LeafSpec) -> bool:
    """Whether the leaf's values are not copied into the index."""
    if leaf.kind is Kind.RAGGED or leaf.optional:
        return True
    return leaf.kind is Kind.NUMBER and math.prod(leaf.shape) > MAX_INDEXED_NUMBERS


def _span(key: str, leaf: LeafSpec, spans: Spans, base: int) -> np.ndarray:
    span = spans.get(key)
    if span is not None:
        return np.array([[span.kind, span.start + base, span.end + base]], np.int64)
    # tfds leaves out an optional value, and takes a missing sequence of the episode for an empty one.
    if leaf.optional or (leaf.levels and not key.startswith(STEPS)):
        return np.zeros((1, 3), np.int64)
    raise _missing(key, spans)


def _values(path: str, leaf: LeafSpec, length: int, record: Buffer, spans: Spans) -> np.ndarray:
    """A field's rows; an episode-level field has one."""
    if path not in spans:
        raise _missing(path, spans)
    in_steps = path.startswith(STEPS)
    values = read_values(path, leaf, length if in_steps else None, lambda key: (record, spans[key]))
    return values if in_steps else np.asarray(values)[None]


def _places(path: str, leaf: LeafSpec, count: int, record: Buffer, spans: Spans) -> list[tuple[int, int]]:
    """(offset, length) in the record of each of `count` strings."""
    if path not in spans:
        raise _missing(path, spans)
    span = spans[path]
    if span.kind != BYTES and span.end > span.start:  # an empty list may be of any kind
        raise ValueError(f"field '{path}' holds {KIND_NAMES[span.kind]}, wanted {leaf}")
    found = bytes_offsets(record, span)
    if len(found) != count:
        raise ValueError(f"field '{path}' has {len(found)} values, wanted {count}")
    return found


def _missing(key: str, spans: Spans) -> ValueError:
    return ValueError(f"no field '{key}'; it has {', '.join(sorted(spans))}")


def _cost_of_counting(step_field: tuple[str, LeafSpec]) -> int:
    """How hard it is to tell the number of steps from a field."""
    leaf = step_field[1]
    easy = leaf.kind is Kind.NUMBER and not leaf.encoding
    return abs(math.prod(leaf.shape)) + (0 if easy else 1 << 20 if leaf.levels == 0 else 2 << 20)


def _count_steps(path: str, leaf: LeafSpec, record: Buffer, spans: Spans) -> int | None:
    """Number of steps as one field has them; None when it cannot tell."""
    key = stored_keys(path, leaf)[1 if leaf.levels else 0]
    if key not in spans:
        return None
    span = spans[key]
    if leaf.levels:
        return read_numbers(record, span).size
    in_numbers = leaf.holds is Kind.NUMBER and not leaf.encoding
    width = 1
    if in_numbers or leaf.holds is Kind.TEXT:
        width = 0 if -1 in leaf.shape else math.prod(leaf.shape)
    if width <= 0 or in_numbers == (span.kind == BYTES):
        return None
    return (read_numbers(record, span).size if in_numbers else len(bytes_offsets(record, span))) // width
