"""Compressed TFRecord shards: known by their content, unpacked once into the cache, then read as plain."""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import fsspec

from vla_adapt.episodes.rlds.tfrecord import HEADER_SIZE, OVERHEAD, begins_like_tfrecord
from vla_adapt.episodes.storage.byte_source import ShardFile, is_url
from vla_adapt.episodes.storage.cache_folder import publish
from vla_adapt.progress_bar import progress_bar

UNPACKED = "unpacked"
_DATA = "data.tfrecord"
_CHUNK = 1 << 20
# JPEGs hardly shrink, numbers may: what unpacked data is taken to need when the dataset does not say.
_GUESSED_RATIO = 4


def unpack_shards(shards: Sequence[ShardFile], place: Path, payload_bytes: int | None) -> list[ShardFile]:
    """`shards`, the gzip- or zlib-compressed ones reading from plain copies below `place`.

    Says by a warning what disk space the copies take. A stream that is damaged is unpacked as far as it goes:
    whoever reads the records finds them cut.

    Args:
        shards: files of a split.
        place: an existing cache folder.
        payload_bytes: size of the split's records, if known.

    Raises:
        ValueError: not enough disk space, or a compressed shard on a remote filesystem.
    """
    packed = [shard for shard in shards if shard.size and _is_compressed(shard)]
    folder = place / UNPACKED
    missing = [shard for shard in packed if not (folder / _name(shard) / _DATA).is_file()]
    if missing:
        folder.mkdir(exist_ok=True)
        _say_and_check_space(shards, missing, folder, payload_bytes)
        _unpack_all(missing, folder)
    wanted = {shard.location: folder / _name(shard) / _DATA for shard in packed}
    return [shard.reading(wanted.get(shard.location, shard.data)) for shard in shards]


def _is_compressed(shard: ShardFile) -> bool:
    """Whether a shard's first bytes are a gzip or zlib header and not a record's."""
    if is_url(shard.data):
        filesystem, path = fsspec.url_to_fs(shard.data)
        start = filesystem.cat_file(path, start=0, end=HEADER_SIZE)
    else:
        with Path(shard.data).open("rb") as file:
            start = file.read(HEADER_SIZE)
    # The two bytes of a zlib header may as well be the length of a record: the CRC after it decides.
    if begins_like_tfrecord(start):
        return False
    gzip = start[:2] == b"\x1f\x8b"
    zlib_header = len(start) > 1 and start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    if (gzip or zlib_header) and is_url(shard.data):
        raise ValueError(
            f"{shard.location}: compressed shards cannot be streamed; copy the dataset to a disk"
        )
    return gzip or zlib_header


def _name(shard: ShardFile) -> str:
    state = repr((shard.location, shard.size, shard.mark))
    return f"{Path(shard.location).name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def _say_and_check_space(
    shards: Sequence[ShardFile], missing: Sequence[ShardFile], folder: Path, payload_bytes: int | None
) -> None:
    stored = sum(shard.size or 0 for shard in missing)
    need, about = stored * _GUESSED_RATIO, "perhaps "
    if payload_bytes:
        share = sum(shard.count for shard in missing) / max(sum(shard.count for shard in shards), 1)
        need, about = int(payload_bytes * share) + OVERHEAD * sum(s.count for s in missing), ""
    free = shutil.disk_usage(folder).free
    what = (
        f"{missing[0].location}: compressed; unpacking {len(missing)} such shards into {folder} takes {about}"
    )
    if need > free:
        raise ValueError(
            f"{what}{_size(need)}, the disk has {_size(free)} free; free some or name another cache_dir"
        )
    warnings.warn(f"{what}{_size(need)} of disk, once", stacklevel=4)


def _unpack_all(shards: Sequence[ShardFile], folder: Path) -> None:
    total = sum(shard.size or 0 for shard in shards)
    with progress_bar(f"unpacking {Path(shards[0].location).name.split('.')[0]}", total, "bytes") as bar:
        for shard in shards:
            publish(
                folder,
                _name(shard),
                write=partial(_write_copy, Path(shard.data), bar.advance),
                valid=lambda copy: (copy / _DATA).is_file(),
            )
            _remove_stale(folder, shard)


def _write_copy(source: Path, advance: Callable[[float], None], folder: Path) -> None:
    """Write `source` decompressed to `folder`, as far as it is sound."""
    with source.open("rb") as file, (folder / _DATA).open("wb") as out:
        decoder = zlib.decompressobj(47)  # 32 + 15: a gzip or a zlib header, whichever is there
        while chunk := file.read(_CHUNK):
            advance(len(chunk))
            while chunk:
                if decoder.eof:  # gzip members may follow one another, or zeros
                    chunk = chunk.lstrip(b"\0")
                    decoder = zlib.decompressobj(47)
                    continue
                try:
                    out.write(decoder.decompress(chunk, 16 * _CHUNK))
                except zlib.error:
                    return
                chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail


def _remove_stale(folder: Path, shard: ShardFile) -> None:
    """Delete copies of earlier states of the shard."""
    stem = re.escape(Path(shard.location).name)
    for entry in folder.iterdir():
        if re.fullmatch(rf"{stem}-[0-9a-f]{{16}}", entry.name) and entry.name != _name(shard):
            shutil.rmtree(entry, ignore_errors=True)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
