"""Motion summaries kept on disk, under a key of everything they depend on: files, entry, robot, code."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np

import vla_adapt
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.measuring.motion_summary import PIECE_STEPS, MotionSummary
from vla_adapt.episodes.measuring.vector_summary import VectorSummary
from vla_adapt.episodes.provenance import opened_as
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable, publish
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset
from vla_adapt.types import Layout

PREFIX = "statistics-"
# Summaries kept per dataset folder (of splits, subsets, entries); the longest unused go first.
MAX_KEPT = 16


class SummaryCache:
    """The cached summary of one dataset in one layout; of a dataset that is not on a local disk, nothing."""

    def __init__(self, dataset: EpisodeDataset, layout: Layout):
        self._places: list[Path] = []
        folder = dataset_folder(dataset)
        if folder is None:
            return
        key = (dataset_fingerprint(dataset), layout, PIECE_STEPS)
        self._name = PREFIX + hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        self._places = cache_places(folder, None, kind="statistics")

    @property
    def is_there(self) -> bool:
        """Whether there is a summary (`load` may still find it damaged)."""
        return any((place / self._name).is_dir() for place in self._places)

    def load(self) -> MotionSummary | None:
        """The summary, or None when there is none that can be read."""
        return next((found for place in self._places if (found := _load(place / self._name))), None)

    def save(self, summary: MotionSummary) -> None:
        """Keep a summary; where nothing can be written, or the disk is full, it will be computed again."""
        if not self._places:
            return
        try:
            place = first_writable(self._places)
            publish(
                place,
                self._name,
                write=lambda folder: _write(summary, folder),
                valid=lambda folder: _load(folder) is not None,
            )
        except ValueError:
            return
        kept = sorted(place.glob(f"{PREFIX}*"), key=_last_used)
        for old in kept[:-MAX_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def dataset_folder(dataset: EpisodeDataset) -> Path | None:
    """The folder that what is derived from a dataset lies beside or in; None: it is not on a local disk."""
    stored = opened_as(dataset)
    if stored is None or not _is_local(stored.path):
        return None
    return stored.path if stored.path.is_dir() else stored.path.parent


def dataset_fingerprint(dataset: EpisodeDataset) -> str:
    """Digest of what motion and words of a dataset on a local disk depend on: files, entry, robot, code."""
    stored = opened_as(dataset)
    assert stored is not None, f"{dataset.name} is not on a local disk"
    return hashlib.sha256(repr((_identity(dataset), _files(stored.path), _code())).encode()).hexdigest()


def _is_local(path: Path) -> bool:
    """Whether the data itself lies there; of a remote dataset there are only copies of its JSON files."""
    return path.is_file() or any(
        not name.endswith(".json") and not name.startswith(".")
        for _, _, names in os.walk(path)
        for name in names
    )


def _identity(dataset: EpisodeDataset) -> str:
    """Everything but the files that the motion of a dataset depends on."""
    if isinstance(dataset, EpisodeSubset):
        chosen = hashlib.sha256(dataset.indices.tobytes()).hexdigest()
        return f"{_identity(dataset.dataset)} episodes {chosen}"
    if isinstance(dataset, StridedDataset):
        return f"{_identity(dataset.dataset)} stride {dataset.stride}"
    assert isinstance(dataset, MappedDataset)
    lengths = hashlib.sha256(np.asarray(dataset.lengths, np.int64).tobytes()).hexdigest()
    return repr((dataset.split, dataset.entry.model_dump_json(), dataset.embodiment.to_text(), lengths))


def _files(path: Path) -> str:
    """Digest of names, sizes and times of a dataset's files; hidden ones (our caches) do not count."""
    if path.is_file():
        return repr((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            state = os.stat(os.path.join(folder, name))
            place = os.path.relpath(folder, path)
            digest.update(repr((place, name, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    """Digest of the code that turns files into unified motion: a changed transform must not go unseen."""
    package = Path(vla_adapt.__file__).resolve().parent
    sources = [*package.glob("episodes/**/*.py"), *package.glob("actions/*.py"), package / "embodiment.py"]
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _write(summary: MotionSummary, folder: Path) -> None:
    np.savez(folder / "action.npz", **summary.action.state())
    np.savez(folder / "proprio.npz", **summary.proprio.state())


def _load(folder: Path) -> MotionSummary | None:
    try:
        vectors: list[VectorSummary] = []
        for name in ("action.npz", "proprio.npz"):
            with np.load(folder / name, allow_pickle=False) as arrays:
                vectors.append(VectorSummary.from_state({key: arrays[key] for key in arrays}))
            os.utime(folder)
        return MotionSummary(*vectors)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
