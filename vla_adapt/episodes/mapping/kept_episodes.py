"""Some episodes of a store as a store of its own: what is left when damaged ones are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped

from vla_adapt.episodes.storage.feature_spec import LeafSpec
from vla_adapt.episodes.storage.stored import StoredEpisodes, fetcher, find_prefetcher, release_memory
from vla_adapt.episodes.storage.text_runs import Runs, runs_reader


@runtime_checkable
class LeavesOut(Protocol):
    """A store that may leave episodes out.

    Attributes:
        skipped: file, record and reason of each damage.
        lost: how many episodes it costs.
    """

    @property
    def skipped(self) -> Sequence[str]: ...

    @property
    def lost(self) -> int: ...


@runtime_checkable
class Numbered(Protocol):
    """A store that knows the number of each episode among all recorded ones (HDF5 has names instead)."""

    @property
    def ordinals(self) -> Int64[np.ndarray, " E"]: ...


class KeptEpisodes:
    """Episodes `kept` [K] of `store`, in that order, as `StoredEpisodes`; `reasons` say why not the rest."""

    def __init__(self, store: StoredEpisodes, kept: Int64[np.ndarray, " K"], reasons: Sequence[str]):
        self.name: str = store.name
        self.split: str = store.split
        self.path: Path = store.path
        self.fields: Mapping[str, LeafSpec] = store.fields
        before, lost = left_out(store)
        self.skipped, self.lost = [*before, *reasons], lost + len(reasons)
        self._store, self._kept = store, kept

    @property
    def lengths(self) -> Int64[np.ndarray, " K"]:
        """Recorded steps of each episode."""
        return self._store.lengths[self._kept]

    @property
    def ordinals(self) -> Int64[np.ndarray, " K"]:
        """Number of each episode among all recorded ones."""
        return recorded_numbers(self._store)[self._kept]

    def release(self) -> None:
        release_memory(self._store)

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        return self._store.numbers(field, int(self._kept[episode]))

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        ends = np.cumsum(self._store.lengths)
        keep = np.zeros(int(ends[-1]), bool)
        for episode in self._kept:
            keep[ends[episode] - self._store.lengths[episode] : ends[episode]] = True
        return self._store.column(field)[keep]

    def image(self, field: str, episode: int, step: int) -> Any:
        return self._store.image(field, int(self._kept[episode]), step)

    def fetch_image(self, field: str, episode: int, step: int) -> Callable[[], Any]:
        return fetcher(self._store)(field, int(self._kept[episode]), step)

    def prefetcher(self) -> Callable[[str, int, int], None] | None:
        inner = find_prefetcher(self._store)
        return None if inner is None else partial(self._prefetch, inner)

    def _prefetch(self, inner: Callable[[str, int, int], None], field: str, episode: int, step: int) -> None:
        inner(field, int(self._kept[episode]), step)

    def texts(self, field: str, episode: int) -> Sequence[str]:
        return self._store.texts(field, int(self._kept[episode]))

    def text_runs(self, field: str, episode: int) -> Runs:
        return runs_reader(self._store)(field, int(self._kept[episode]))

    def locate(self, episode: int) -> str:
        return self._store.locate(int(self._kept[episode]))

    def metadata(self, episode: int) -> Mapping[str, Any]:
        return self._store.metadata(int(self._kept[episode]))


def left_out(store: StoredEpisodes) -> tuple[list[str], int]:
    """What a store left out, one line each, and how many episodes."""
    return (list(store.skipped), store.lost) if isinstance(store, LeavesOut) else ([], 0)


def recorded_numbers(store: StoredEpisodes) -> Int64[np.ndarray, " E"]:
    """Number of each episode of `store` among all recorded ones: the same whatever was left out."""
    return store.ordinals if isinstance(store, Numbered) else np.arange(len(store.lengths))
