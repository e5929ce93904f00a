"""TFRecord framing and what damage is reported as."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_adapt.episodes.rlds.tfrecord import OVERHEAD, frame, masked_crc, read_records


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_read_gives_back_what_was_framed(tmp_path_factory, payloads: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    path.write_bytes(b"".join(frame(payload) for payload in payloads))
    records = list(read_records(path))
    assert [payload for _, payload in records] == payloads
    data = path.read_bytes()
    assert all(data[at : at + len(payload)] == payload for at, payload in records)


def test_known_crc() -> None:
    # CRC32C of "123456789" is 0xE3069283 (RFC 3720 family check value); TFRecord rotates and offsets it.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.fixture
def two_records(tmp_path: Path) -> Path:
    path = tmp_path / "two.tfrecord"
    path.write_bytes(frame(b"a" * 50) + frame(b"b" * 50))
    return path


@pytest.mark.parametrize("cut", [1, 30, 55, 60])
def test_truncation_names_file_record_and_byte(two_records: Path, cut: int) -> None:
    two_records.write_bytes(two_records.read_bytes()[:-cut])
    with pytest.raises(
        ValueError, match=rf"two\.tfrecord: record 1 at byte {50 + OVERHEAD}: file is truncated"
    ):
        list(read_records(two_records))


def test_flipped_byte_is_a_crc_error_unless_not_asked(two_records: Path) -> None:
    data = bytearray(two_records.read_bytes())
    data[50 + OVERHEAD + 20] ^= 1
    two_records.write_bytes(data)
    with pytest.raises(ValueError, match=r"record 1 at byte 66: CRC of the data is wrong"):
        list(read_records(two_records))
    assert len(list(read_records(two_records, verify_crc=False))) == 2


def test_flipped_length_is_always_found(two_records: Path) -> None:
    data = bytearray(two_records.read_bytes())
    data[0] ^= 1
    two_records.write_bytes(data)
    with pytest.raises(ValueError, match=r"record 0 at byte 0: CRC of the length is wrong"):
        list(read_records(two_records, verify_crc=False))
