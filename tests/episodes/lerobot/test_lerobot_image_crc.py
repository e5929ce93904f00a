"""CRCs of images: of the stored bytes, noted once, noted again when the files are others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes.lerobot.lerobot_image_crc import image_crcs
from vla_adapt.episodes.rlds.tfrecord import crc32c

LENGTHS = np.array([2, 3], np.int64)


class Reader:
    """Counts what is read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int, int]] = []

    def __call__(self, field: str, episode: int, step: int) -> bytes:
        self.read.append((field, episode, step))
        return f"{field} {episode} {step}".encode()


def test_noted_once_for_each_state_of_the_files(tmp_path: Path) -> None:
    reader = Reader()
    got = image_crcs(tmp_path, "a", ["one", "two"], LENGTHS, reader)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for field in ("one", "two"):
        wanted = [crc32c(f"{field} {episode} {step}".encode()) for episode, step in places]
        assert got[field].tolist() == wanted
    again = image_crcs(tmp_path, "a", ["one", "two"], LENGTHS, reader)
    assert len(reader.read) == 10, "the second time from the cache"
    np.testing.assert_array_equal(again["two"], got["two"])
    image_crcs(tmp_path, "b", ["one"], LENGTHS, reader)
    assert len(reader.read) == 15
    assert len(list((tmp_path / ".vla_adapt_index").glob("crc-*"))) == 1, "the old ones are gone"


def test_damaged_notes_are_made_anew(tmp_path: Path) -> None:
    reader = Reader()
    got = image_crcs(tmp_path, "a", ["one"], LENGTHS, reader, tmp_path / "cache")
    wanted = got["one"].tolist()
    for junk in (b"", b"\x93NUMPY"):
        next((tmp_path / "cache").glob("**/000.npy")).write_bytes(junk)
        assert (
            image_crcs(tmp_path, "a", ["one"], LENGTHS, reader, tmp_path / "cache")["one"].tolist() == wanted
        )


def test_a_missing_image_leaves_nothing_behind(tmp_path: Path) -> None:
    def encoded(field: str, episode: int, step: int) -> bytes:
        raise ValueError("no image embedded")

    with pytest.raises(ValueError, match="no image embedded"):
        image_crcs(tmp_path, "a", ["one"], LENGTHS, encoded)
    assert not list((tmp_path / ".vla_adapt_index").iterdir())
