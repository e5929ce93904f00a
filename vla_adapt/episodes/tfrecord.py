"""TFRecord framing: length, masked CRC32C of the length, payload, masked CRC32C of the payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
OVERHEAD = _HEADER.size + _FOOTER.size
_GZIP_MAGIC = b"\x1f\x8b"


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and offset as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record as it lies in a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    return length + _FOOTER.pack(masked_crc(length)) + payload + _FOOTER.pack(masked_crc(payload))


def read_records(path: Path, verify_crc: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield (offset of the payload in the file, payload) for every record.

    Args:
        path: an uncompressed TFRecord file.
        verify_crc: also check the payload's CRC (the length's CRC is always checked).

    Raises:
        ValueError: truncated file, CRC mismatch or a compressed file; names file, record and byte offset.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        position = record = 0
        while position < size:
            header = file.read(_HEADER.size)
            if record == 0 and header[:2] == _GZIP_MAGIC:
                raise ValueError(f"{path}: gzip-compressed TFRecord; decompress it first (gunzip)")
            where = f"{path}: record {record} at byte {position}"
            if len(header) < _HEADER.size:
                raise ValueError(_truncated(where, _HEADER.size, len(header)))
            length, length_crc = _HEADER.unpack(header)
            if masked_crc(header[:8]) != length_crc:
                raise ValueError(f"{where}: CRC of the length is wrong, the file is damaged; copy it again")
            body = file.read(min(length + _FOOTER.size, size - position))
            if len(body) < length + _FOOTER.size:
                raise ValueError(_truncated(where, length + _FOOTER.size, len(body)))
            payload = body[:length]
            if verify_crc and masked_crc(payload) != _FOOTER.unpack_from(body, length)[0]:
                raise ValueError(f"{where}: CRC of the data is wrong, the file is damaged; copy it again")
            yield position + _HEADER.size, payload
            position += length + OVERHEAD
            record += 1


def _truncated(where: str, wanted: int, got: int) -> str:
    return f"{where}: file is truncated (wanted {wanted} more bytes, got {got}); copy it again"
