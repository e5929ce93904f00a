"""Where files derived from a dataset are cached (beside it, else in the user's cache) and how they appear."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

BESIDE = ".vla_adapt_index"
CACHE_VARIABLE = "VLA_ADAPT_CACHE"
_ABANDONED_AFTER_S = 2 * 24 * 3600


def cache_places(dataset: Path, cache_dir: str | Path | None, kind: str = "rlds") -> list[Path]:
    """Where files derived from `dataset` (its folder) may lie, in order of preference.

    Args:
        dataset: the folder.
        cache_dir: only here; None: beside the dataset, else in $VLA_ADAPT_CACHE or ~/.cache/vla_adapt.
        kind: of dataset, a folder inside the cache.
    """
    label = f"{dataset.parent.name}-{hashlib.sha256(str(dataset.resolve()).encode()).hexdigest()[:12]}"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser() / kind / label]
    home = os.environ.get(CACHE_VARIABLE)
    user = Path(home) if home else Path.home() / ".cache" / "vla_adapt"
    return [dataset / BESIDE, user / kind / label]


def first_writable(places: Sequence[Path]) -> Path:
    """The first of `places` that can be written to, made if need be.

    Raises:
        ValueError: none of them.
    """
    for place in places:
        try:
            if _marked_read_only(place):
                continue
            place.mkdir(parents=True, exist_ok=True)
            Path(tempfile.mkdtemp(prefix=".building-", dir=place)).rmdir()
            return place
        except OSError:
            continue
    tried = ", ".join(str(place) for place in places)
    remedy = f"set {CACHE_VARIABLE} to one (or cache_dir, which goes before it)"
    raise ValueError(f"no writable folder for the step index (tried {tried}); {remedy}")


def _marked_read_only(place: Path) -> bool:
    """Whether the nearest existing folder has no write bit at all: root could write there, but should not."""
    while not place.exists():
        place = place.parent
    return not place.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def publish(place: Path, name: str, write: Callable[[Path], None], valid: Callable[[Path], bool]) -> Path:
    """Make `place/name` appear with all that `write` puts into it; keep what another put there if `valid`.

    Raises:
        ValueError: the disk is full; nothing is left behind.
    """
    final = place / name
    _remove_abandoned(place)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=place))
    try:
        new = work / "new"
        new.mkdir()
        write(new)
        try:
            new.rename(final)
        except OSError:
            if not valid(final):
                final.rename(work / "damaged")
                new.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(place).free >> 20
        raise ValueError(
            f"{place}: disk is full ({free} MiB free) while writing {name}, nothing was kept; free some "
            f"space or name a folder on another disk (cache_dir or ${CACHE_VARIABLE})"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


@contextlib.contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Hold `place` for building: other processes wait here, and find what this one published.

    A lock on the folder itself, so nothing is left behind and it ends with the process; where the file
    system has no locks everybody builds, which is wasteful but safe.
    """
    descriptor = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Console(stderr=True).status(f"another process is indexing into {place}; waiting for it"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(place: Path) -> None:
    """Delete what builds killed long ago have left."""
    for work in place.glob(".building-*"):
        with contextlib.suppress(OSError, ValueError):
            newest = max(path.stat().st_mtime for path in (work, *work.rglob("*")))
            if time.time() - newest > _ABANDONED_AFTER_S:
                shutil.rmtree(work, ignore_errors=True)
