"""A CRC of every image of a LeRobot dataset, noted once and cached: a changed file is noticed on read."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

from vla_adapt.episodes.rlds.tfrecord import crc32c
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable, publish
from vla_adapt.progress_bar import progress_bar

# Stored bytes of (field, episode, step).
Encoded = Callable[[str, int, int], bytes | None]


def image_crcs(
    dataset: Path,
    state: str,
    fields: Sequence[str],
    lengths: Int64[np.ndarray, " E"],
    encoded: Encoded,
    cache_dir: str | Path | None = None,
) -> dict[str, UInt32[np.ndarray, " N"]]:
    """CRC32C of the stored bytes of each image of `fields`, over all steps of all episodes in order.

    Args:
        dataset: its folder.
        state: what the CRCs are kept under; differs when files or episodes do.
        fields: image fields.
        lengths: steps of each episode.
        encoded: reads an image's bytes.
        cache_dir: as of `cache_places`.

    Raises:
        ValueError: an image is missing (as `encoded` says), or there is nowhere to keep the CRCs.
    """
    name = "crc-" + hashlib.sha256(repr((state, list(fields), lengths.tolist())).encode()).hexdigest()[:16]
    places, steps = cache_places(dataset, cache_dir, kind="lerobot"), int(lengths.sum())
    for place in places:
        found = _load(place / name, fields, steps)
        if found is not None:
            return found
    place = first_writable(places)
    built = publish(
        place, name,
        write=partial(_build, fields=fields, lengths=lengths, encoded=encoded),
        valid=lambda at: _load(at, fields, steps) is not None,
    )  # fmt: skip
    for entry in place.iterdir():
        if entry.name != name and re.fullmatch(r"crc-[0-9a-f]{16}", entry.name):
            shutil.rmtree(entry, ignore_errors=True)
    found = _load(built, fields, steps)
    assert found is not None, f"CRCs just written to {built} cannot be read"
    return found


def _build(into: Path, fields: Sequence[str], lengths: Int64[np.ndarray, " E"], encoded: Encoded) -> None:
    total = int(lengths.sum()) * len(fields)
    with progress_bar("checksums", total, "images") as bar:
        for number, field in enumerate(fields):
            crcs: list[int] = []
            for episode, length in enumerate(lengths.tolist()):
                crcs += [crc32c(encoded(field, episode, step) or b"") for step in range(length)]
                bar.advance(length)
            np.save(into / f"{number:03d}.npy", np.array(crcs, np.uint32))


def _load(place: Path, fields: Sequence[str], steps: int) -> dict[str, np.ndarray] | None:
    """The kept CRCs, or None when they are not there or not readable."""
    try:
        found = {
            field: np.load(place / f"{number:03d}.npy", mmap_mode="r") for number, field in enumerate(fields)
        }
    except (OSError, ValueError, EOFError):
        return None
    return found if all(crcs.shape == (steps,) for crcs in found.values()) else None
