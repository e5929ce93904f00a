"""TFRecord framing: length, masked CRC32C of the length, payload, masked CRC32C of the payload."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
HEADER_SIZE = _HEADER.size
# Read at once: less than a block of a remote file, whose cache would fetch blocks twice for more.
PIECE = 4 << 20
OVERHEAD = _HEADER.size + _FOOTER.size

Buffer = bytes | bytearray | memoryview


class Record(NamedTuple):
    """One record as it was met: its number, the byte its frame begins at, its payload or what is wrong.

    `payload` is a view into a buffer that the next record overwrites, None when damaged. After damage
    that is `final` the rest of the file cannot be read.
    """

    number: int
    start: int
    payload: memoryview | None
    damage: str = ""
    final: bool = False


def crc32c(data: Buffer) -> int:
    """CRC32C of any buffer, without a copy."""
    # The C code takes read-only buffers only; a numpy array over a writable one passes for one.
    return google_crc32c.value(np.frombuffer(data, np.uint8))  # type: ignore[arg-type]


def masked_crc(data: Buffer) -> int:
    """CRC32C, rotated and offset as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record as it lies in a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    return length + _FOOTER.pack(masked_crc(length)) + payload + _FOOTER.pack(masked_crc(payload))


def begins_like_tfrecord(data: bytes) -> bool:
    """Whether `data`, the first bytes of a file, is a record's header with a right CRC (or nothing)."""
    if len(data) < HEADER_SIZE:
        return not data
    return masked_crc(data[:8]) == _HEADER.unpack_from(data)[1]


def scan_records(file: io.IOBase, size: int, verify_crc: bool = True) -> Iterator[Record]:
    """Yield every record of an uncompressed TFRecord file, damaged ones too.

    Args:
        file: read from its start, once, in order; each payload in one piece.
        size: bytes in the file.
        verify_crc: also check the payload's CRC (the length's CRC is always checked).
    """
    buffer = bytearray(1 << 20)
    header = bytearray(HEADER_SIZE)
    position = number = 0
    while position < size:
        got = _fill(file, memoryview(header))
        if got < HEADER_SIZE:
            yield Record(number, position, None, _truncated(HEADER_SIZE, got), final=True)
            return
        length, length_crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != length_crc:
            damage = "CRC of the length is wrong, the file is damaged; copy it again"
            yield Record(number, position, None, damage, final=True)
            return
        wanted, left = length + _FOOTER.size, size - position - HEADER_SIZE
        if wanted > left:
            yield Record(number, position, None, _truncated(wanted, left), final=True)
            return
        if wanted > len(buffer):
            buffer = bytearray(wanted + wanted // 4)
        body = memoryview(buffer)[:wanted]
        got = _fill(file, body)
        if got < wanted:
            yield Record(number, position, None, _truncated(wanted, got), final=True)
            return
        payload = body[:length]
        if verify_crc and masked_crc(payload) != _FOOTER.unpack_from(body, length)[0]:
            damage = "CRC of the data is wrong, the file is damaged; copy it again"
            yield Record(number, position, None, damage)
        else:
            yield Record(number, position, payload)
        position += length + OVERHEAD
        number += 1


def read_records(path: Path, verify_crc: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield (offset of the payload in the file, payload) for every record of an uncompressed TFRecord file.

    Raises:
        ValueError: truncated file or CRC mismatch; names file, record and byte offset.
    """
    with path.open("rb", buffering=0) as file:
        for record in scan_records(file, path.stat().st_size, verify_crc):
            if record.payload is None:
                raise ValueError(f"{path}: record {record.number} at byte {record.start}: {record.damage}")
            yield record.start + HEADER_SIZE, bytes(record.payload)


def _fill(file: io.IOBase, view: memoryview) -> int:
    """Read until `view` is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(view):
        got = file.readinto(view[done : done + PIECE])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    return done


def _truncated(wanted: int, got: int) -> str:
    return f"file is truncated (wanted {wanted} more bytes, got {got}); copy it again"
