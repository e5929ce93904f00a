"""`tf.train.Example` without protobuf: encode arrays, and find where the values of a stored record lie.

Wire layout: Example{1: Features{1: entry{1: key, 2: Feature}}},
Feature{1: BytesList | 2: FloatList | 3: Int64List}.
Every list is {1: repeated value}; most writers pack numbers, but unpacked ones are legal and read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

BYTES, FLOAT, INT64 = 1, 2, 3
KIND_NAMES = {BYTES: "bytes", FLOAT: "float", INT64: "int64"}

Values = Sequence[bytes] | np.ndarray
Buffer = bytes | bytearray | memoryview


class Span(NamedTuple):
    """Where one feature's list lies in a record: kind (BYTES, FLOAT, INT64), first and end byte."""

    kind: int
    start: int
    end: int


def encode_example(features: Mapping[str, Values]) -> bytes:
    """Serialize features to a `tf.train.Example`.

    Args:
        features: name -> sequence of bytes, or an array (flattened; float -> FloatList, else Int64List).

    Returns:
        The serialized message; keys in sorted order, so equal input gives equal bytes.
    """
    entries = []
    for key in sorted(features):
        entry = _field(1, key.encode()) + _field(2, _encode_feature(features[key]))
        entries.append(_field(1, entry))
    return _field(1, b"".join(entries))


def scan_example(record: Buffer) -> dict[str, Span]:
    """Find every feature's value list in a serialized `tf.train.Example`.

    Raises:
        ValueError: the bytes are not an Example.
    """
    spans: dict[str, Span] = {}
    try:
        for number, start, end in _fields(record, 0, len(record)):
            if number != 1:
                continue
            for _, entry_start, entry_end in _fields(record, start, end):
                key, span = _scan_entry(record, entry_start, entry_end)
                spans[key] = span
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"record is not a tf.train.Example ({error})") from None
    return spans


def bytes_offsets(record: Buffer, span: Span) -> list[tuple[int, int]]:
    """(offset, length) of every string of a BytesList, offsets from the start of the record.

    Raises:
        ValueError: the bytes are not a BytesList.
    """
    # The hottest loop of indexing, so apart from `_fields`: only tag 1, lengths of one or two bytes first.
    found, position, end = [], span.start, span.end
    try:
        while position < end:
            tag, size = record[position], record[position + 1]
            position += 2
            if size & 0x80:
                size = size & 0x7F | record[position] << 7
                position += 1
                if size & 0x4000:
                    size, position = _rest_of_varint(record, size & 0x3FFF, 14, position)
            if tag != 0x0A or position + size > end:
                raise ValueError(f"record is not a tf.train.Example (list at byte {position} is broken)")
            found.append((position, size))
            position += size
    except IndexError as error:
        raise ValueError(f"record is not a tf.train.Example ({error})") from None
    return found


def read_numbers(record: Buffer, span: Span) -> np.ndarray:
    """Values of a FloatList (float32) or Int64List (int64), packed or not."""
    raw = memoryview(record)[span.start : span.end]
    if not len(raw):
        return np.zeros(0, np.float32 if span.kind == FLOAT else np.int64)
    if span.kind == FLOAT and raw[0] == 0x0D and len(raw) % 5 == 0:
        rows = np.frombuffer(raw, np.uint8).reshape(-1, 5)
        if (rows[:, 0] == 0x0D).all():
            return rows[:, 1:].copy().view("<f4").ravel()
    if span.kind == INT64 and raw[0] == 0x08:
        return _varints(_unpacked_varints(raw))
    chunks = [bytes(record[start:end]) for _, start, end in _fields(record, span.start, span.end)]
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return np.frombuffer(data, "<f4") if span.kind == FLOAT else _varints(data)


def _scan_entry(record: Buffer, start: int, end: int) -> tuple[str, Span]:
    key, span = "", Span(BYTES, start, start)
    for number, field_start, field_end in _fields(record, start, end):
        if number == 1:
            key = bytes(record[field_start:field_end]).decode()
            continue
        for kind, list_start, list_end in _fields(record, field_start, field_end):
            span = Span(kind, list_start, list_end)
    return key, span


def _fields(record: Buffer, position: int, end: int) -> list[tuple[int, int, int]]:
    """(field number, start, end) of the length-delimited and fixed32 fields in record[position:end]."""
    found = []
    while position < end:
        tag = record[position]
        position += 1
        if tag & 7 == 5:
            size = 4
        elif tag & 7 == 2 and tag < 0x80:
            size = record[position]
            position += 1
            if size & 0x80:
                size, position = _rest_of_varint(record, size & 0x7F, 7, position)
        else:
            raise ValueError(f"record is not a tf.train.Example (tag {tag} at byte {position - 1})")
        if position + size > end:
            raise ValueError(f"record is not a tf.train.Example (field at byte {position} is cut)")
        found.append((tag >> 3, position, position + size))
        position += size
    return found


def _rest_of_varint(record: Buffer, value: int, shift: int, position: int) -> tuple[int, int]:
    """Go on with a varint whose first `shift` / 7 bytes gave `value`; returns it and where it ends."""
    while True:
        byte = record[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, position


def _encode_feature(values: Values) -> bytes:
    if isinstance(values, np.ndarray):
        flat = values.ravel()
        if flat.dtype.kind == "f":
            return _field(FLOAT, _field(1, flat.astype("<f4").tobytes()) if flat.size else b"")
        assert flat.dtype.kind in "biu", f"cannot store dtype {values.dtype} in an Example"
        return _field(INT64, _field(1, _encode_varints(flat)) if flat.size else b"")
    return _field(BYTES, b"".join(_field(1, value) for value in values))


def _encode_varints(values: np.ndarray) -> bytes:
    if values.dtype == np.bool_ or (values.min() >= 0 and values.max() < 128):
        return values.astype(np.uint8).tobytes()
    mask = (1 << 64) - 1
    return b"".join(_varint(int(value) & mask) for value in values)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varints(data: bytes) -> np.ndarray:
    """Decode concatenated varints to int64 (two's complement)."""
    raw = np.frombuffer(data, np.uint8)
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(raw.size) - np.repeat(starts, ends - starts + 1)
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)


def _unpacked_varints(raw: memoryview) -> bytes:
    """Drop the tag byte before each value of an unpacked Int64List."""
    out, position = bytearray(), 0
    while position < len(raw):
        if raw[position] != 0x08:
            raise ValueError("record is not a tf.train.Example (mixed packed and unpacked integers)")
        position += 1
        while True:
            byte = raw[position]
            out.append(byte)
            position += 1
            if byte < 0x80:
                break
    return bytes(out)
