"""Compressed shards: found by content, unpacked once, read like plain ones."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes import EpisodeData, open_dataset
from vla_adapt.episodes.rlds.tfrecord import begins_like_tfrecord, frame
from vla_adapt.episodes.rlds.unpack import UNPACKED
from vla_adapt.episodes.storage.cache_folder import BESIDE

PACKERS = {"gzip": gzip.compress, "zlib": zlib.compress}


def pack(folder: Path, packer: Callable[[bytes], bytes], only: int | None = None) -> list[Path]:
    """Compress train shards in place, keeping their names."""
    shards = sorted(folder.glob("*-train.tfrecord-*"))
    chosen = shards if only is None else [shards[only]]
    for path in chosen:
        path.write_bytes(packer(path.read_bytes()))
    return chosen


def copies(folder: Path) -> list[Path]:
    return sorted((folder / BESIDE / UNPACKED).glob("*/data.tfrecord"))


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_reads_as_plain(
    written: Path, recordings: dict[str, list[EpisodeData]], kind: str
) -> None:
    plain = {(i, t): open_dataset(written)[i].image(t) for i in range(5) for t in range(3)}
    originals = [path.read_bytes() for path in sorted(written.glob("*-train.tfrecord-*"))]
    shutil.rmtree(written / BESIDE)
    packed = pack(written, PACKERS[kind])
    with pytest.warns(UserWarning, match=r"compressed; unpacking 3 such .* takes [\d.]+ KiB of disk, once"):
        dataset = open_dataset(written)
    for (i, t), image in plain.items():
        np.testing.assert_array_equal(dataset[i].image(t), image)
        np.testing.assert_array_equal(dataset[i].action, recordings["train"][i].action)
    assert [path.read_bytes() for path in copies(written)] == originals
    assert len(packed) == len(originals)


def test_unpacked_once(written: Path) -> None:
    pack(written, gzip.compress, only=1)
    with pytest.warns(UserWarning, match="compressed"):
        open_dataset(written)
    (copy,) = copies(written)
    before = copy.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = open_dataset(written)
    assert again[3].image(0).shape == (32, 32, 3)
    assert copy.stat().st_mtime_ns == before


def test_a_deleted_copy_is_made_again(written: Path) -> None:
    pack(written, gzip.compress, only=0)
    with pytest.warns(UserWarning, match="compressed"):
        open_dataset(written)
    shutil.rmtree(written / BESIDE / UNPACKED)
    with pytest.warns(UserWarning, match="compressed"):
        assert open_dataset(written)[0].image(0).shape == (32, 32, 3)


def test_a_changed_shard_is_unpacked_again_and_its_old_copy_removed(written: Path) -> None:
    (path,) = pack(written, gzip.compress, only=0)
    with pytest.warns(UserWarning, match="compressed"):
        open_dataset(written)
    old = copies(written)
    os.utime(path, ns=(5, 5))
    with pytest.warns(UserWarning, match="compressed"):
        open_dataset(written)
    assert len(copies(written)) == 1
    assert copies(written) != old


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_stream_is_named_or_skipped(written: Path, kind: str) -> None:
    (path,) = pack(written, PACKERS[kind], only=0)
    path.write_bytes(path.read_bytes()[:-2000])
    with (
        pytest.warns(UserWarning, match="compressed"),
        pytest.raises(ValueError, match=rf"{path.name}: record 1 at byte \d+: file is truncated"),
    ):
        open_dataset(written)
    with pytest.warns(UserWarning, match="skipped 1 damaged of 5 episodes"):
        dataset = open_dataset(written, on_error="skip")
    assert [episode.episode_id for episode in dataset] == ["train/0", "train/2", "train/3", "train/4"]


def test_too_small_a_disk_is_said_before(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(written, gzip.compress)
    usage = shutil.disk_usage(written)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.used, 1000))
    with pytest.raises(
        ValueError, match=r"compressed; unpacking 3 such .* takes 12\d\.\d KiB, the disk has 1\.0 KiB free"
    ):
        open_dataset(written)
    assert not copies(written)


def test_several_gzip_members(written: Path) -> None:
    def in_parts(data: bytes) -> bytes:
        return gzip.compress(data[:5000]) + gzip.compress(data[5000:]) + bytes(512)

    pack(written, in_parts, only=0)
    with pytest.warns(UserWarning, match="compressed"):
        assert open_dataset(written)[1].image(0).shape == (32, 32, 3)


def test_a_length_that_looks_like_a_zlib_header_is_a_length() -> None:
    length = 0x9C78
    assert struct.pack("<Q", length)[:2] == zlib.compress(b"")[:2]
    assert begins_like_tfrecord(frame(bytes(length))[:12])
    assert not begins_like_tfrecord(zlib.compress(b"a" * 100)[:12])
