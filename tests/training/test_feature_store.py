"""Stores of features: whole pieces or none, read back exactly, full disks and too large numbers told."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.training import feature_store
from vla_adapt.training.feature_store import FeatureStore

SHAPE = (3, 8)


def store_in(folder: Path) -> FeatureStore:
    return FeatureStore(folder / "store", rows=11, shape=SHAPE, piece_bytes=4 * 2 * 24)


def test_pieces_are_read_back_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feature_store, "_OPEN_PIECES", 2)
    store = store_in(tmp_path)
    assert store.missing() == [range(4), range(4, 8), range(8, 11)]
    assert store.total_bytes == 11 * 48
    features = np.random.default_rng(0).normal(size=(11, *SHAPE)).astype(np.float32)
    for piece in store.missing():
        store.write(piece, features[piece.start : piece.stop])
    assert store.missing() == []
    again = pickle.loads(pickle.dumps(store_in(tmp_path)))
    for row in (10, 0, 5, 4, 3, 9, 10):
        assert np.array_equal(again.row(row), features[row].astype(np.float16))
    assert len(again._open) <= 2


def test_a_killed_run_leaves_whole_pieces_only(tmp_path: Path):
    store = store_in(tmp_path)
    store.write(range(4, 8), np.ones((4, *SHAPE)))
    (store.folder / ".writing-killed").write_bytes(b"half")
    assert store.missing() == [range(4), range(8, 11)]
    piece = store.folder / "0000000004.npy"
    piece.write_bytes(piece.read_bytes()[:-1])
    assert store.missing() == [range(4), range(4, 8), range(8, 11)]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_in(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ValueError, match=r"disk is full; free some space, set adaptation\.cache_dir"):
        store.write(range(4), np.ones((4, *SHAPE)))
    assert list(store.folder.iterdir()) == []
    large = FeatureStore(tmp_path / "new" / "store", rows=10**12, shape=SHAPE, piece_bytes=1 << 50)
    with pytest.raises(ValueError, match=r"features need \d+ MiB, \d+ MiB are free"):
        large.check_space()
    store.check_space()


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"reach 1e\+05, more than float16 holds; set adaptation\.cache=false"
    ):
        store_in(tmp_path).write(range(4), np.full((4, *SHAPE), 1e5))
