"""Scan TFRecord shards once into flat arrays on disk: where every image lies, and all small numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_adapt.episodes.rlds.index_columns import ColumnFiles
from vla_adapt.episodes.rlds.index_record import RecordColumns
from vla_adapt.episodes.rlds.tfrecord import HEADER_SIZE, scan_records
from vla_adapt.episodes.storage.byte_source import ShardFile
from vla_adapt.episodes.storage.damage import DamageLog
from vla_adapt.episodes.storage.feature_spec import LeafSpec
from vla_adapt.progress_bar import progress_bar


def build_index(
    shards: Sequence[ShardFile],
    leaves: Mapping[str, LeafSpec],
    folder: Path,
    verify_crc: bool = True,
    image_crc: bool = False,
    log: DamageLog | None = None,
) -> dict[str, str]:
    """Read every record of `shards` and write what was found into `folder`.

    Arrays [episodes]: "shard", "length" (steps) and "ordinal" (number among all episodes of the split, left
    out ones counted); those of the fields are `RecordColumns`'.

    Args:
        shards: files with the number of records each must hold.
        leaves: the schema.
        folder: an empty one.
        verify_crc: check each record's data CRC.
        image_crc: store every image's CRC32C.
        log: what to do about damage; default: raise.

    Returns:
        Array name -> file name.

    Raises:
        ValueError: damaged file, a record that lacks a field of the schema, a wrong number of records;
            names file, record and byte.
        OSError: the disk is full.
    """
    log = log or DamageLog()
    total = sum(shard.size or 0 for shard in shards)
    what = f"indexing {Path(shards[0].location).name.split('.')[0]}"
    with progress_bar(what, total, "bytes") as bar, ColumnFiles(folder) as columns:
        for name, dtype in (("shard", np.int32), ("length", np.int64), ("ordinal", np.int64)):
            columns.declare(name, dtype)
        records = RecordColumns(columns, leaves, image_crc)
        first = 0
        for number, shard in enumerate(shards):
            for record, length in _readable(shard, records, verify_crc, log, bar.advance):
                columns.append("shard", np.array([number], np.int32))
                columns.append("length", np.array([length], np.int64))
                columns.append("ordinal", np.array([first + record], np.int64))
            first += shard.count
    return columns.files()


def _readable(
    shard: ShardFile,
    records: RecordColumns,
    verify_crc: bool,
    log: DamageLog,
    advance: Callable[[float], None],
) -> list[tuple[int, int]]:
    """Add a shard's sound records to `records`; returns (number in the shard, steps) of each."""
    if shard.size is None:
        log.report(f"{shard.location}: shard is missing; copy the dataset again", shard.count)
        return []
    kept, found, cut = [], 0, False
    file, size = shard.open()
    with file:
        for record in scan_records(file, size, verify_crc):
            found, cut = record.number + 1, record.final
            where = f"{shard.location}: record {record.number} at byte {record.start}"
            if record.payload is None:
                lost = shard.count - record.number if cut else 1
                log.report(f"{where}: {record.damage}", max(lost, 1))
                continue
            if record.number < shard.count:
                try:
                    steps = records.add(record.payload, record.start + HEADER_SIZE)
                    kept.append((record.number, steps))
                except ValueError as error:
                    log.report(f"{where}: {error}")
            advance(len(record.payload))
    if found != shard.count and not cut:
        text = f"{shard.location}: has {found} episodes, dataset_info.json says {shard.count}; copy it again"
        log.report(text, abs(found - shard.count))
    return kept
