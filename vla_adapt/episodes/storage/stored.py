"""What every storage format offers: named per-step fields of recorded episodes, read by position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vla_adapt.episodes.storage.feature_spec import LeafSpec


@runtime_checkable
class StoredEpisodes(Protocol):
    """One split of a stored dataset, as recorded; `mapped.MappedDataset` maps it onto a robot.

    Attributes:
        name: of the dataset.
        split: of the dataset.
        path: the folder or file it lies in, for messages.
        fields: per-step field name ("observation/image_0") -> kind, shape and dtype of one step's value.
        lengths: recorded steps of each episode.
    """

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def fields(self) -> Mapping[str, LeafSpec]: ...

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]: ...

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of all steps of an episode, in the stored dtype (float64 as float32
        where the format stores no more)."""
        ...

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        """A small number field of all steps of all episodes, in order; reads no image."""
        ...

    def image(self, field: str, episode: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one stored image.

        Raises:
            ValueError: it cannot be read or decoded; names file and byte.
        """
        ...

    def texts(self, field: str, episode: int) -> Sequence[str]:
        """A text field of all steps of an episode."""
        ...

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """Facts about the whole episode."""
        ...

    def locate(self, episode: int) -> str:
        """Where an episode lies, file first, for messages."""
        ...


@runtime_checkable
class FetchesImages(Protocol):
    """A store that reads an image's stored bytes first and decodes them when the returned call is made."""

    def fetch_image(self, field: str, episode: int, step: int) -> Callable[[], np.ndarray]: ...


def fetcher(store: StoredEpisodes) -> Callable[[str, int, int], Callable[[], np.ndarray]]:
    """`fetch_image` of a store; one that has none reads an image when it decodes it."""
    if isinstance(store, FetchesImages):
        return store.fetch_image
    return partial(partial, store.image)


def find_prefetcher(data: Any) -> Callable[..., None] | None:
    """What fetches an image of a store or dataset in the background; None: it has nothing remote."""
    make = getattr(data, "prefetcher", None)
    return None if make is None else make()


def release_memory(store: StoredEpisodes) -> None:
    """Have a store let go of memory that reading whole columns took, where it can."""
    release = getattr(store, "release", None)
    if release is not None:
        release()
