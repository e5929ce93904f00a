"""Random access to the steps of an RLDS split: numbers from the index, images by one positioned read each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from vla_adapt.episodes.example_proto import Span, read_numbers
from vla_adapt.episodes.feature_spec import STEPS, Kind
from vla_adapt.episodes.image_codec import decode_image
from vla_adapt.episodes.index import StepIndex
from vla_adapt.episodes.index_build import shape_numbers
from vla_adapt.episodes.mapped import METADATA
from vla_adapt.episodes.shards import RldsFolder


class RldsStore:
    """One split of an RLDS dataset as `StoredEpisodes`.

    Args:
        folder: the version folder.
        split: split name, part of the episode ids.
        index: the split's index.
    """

    def __init__(self, folder: RldsFolder, split: str, index: StepIndex):
        self.name, self.split, self.path = folder.name, split, folder.path
        self._leaves, self._index = folder.leaves, index
        self.fields = {
            path.removeprefix(STEPS): leaf for path, leaf in folder.leaves.items() if path.startswith(STEPS)
        }
        self._ends = np.cumsum(index.lengths)
        self._descriptors = _Descriptors(index.shards)

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Recorded steps of each episode."""
        return self._index.lengths

    def numbers(self, field: str, episode: int) -> np.ndarray:
        """A number field of an episode, [T, ...], from the index or, if large, the record."""
        path = STEPS + field
        indexed = self._index.arrays.get(f"{path}:value")
        if indexed is not None:
            return np.array(indexed[self._rows(episode)])
        kind, start, end = (int(x) for x in self._index.arrays[f"{path}:span"][episode])
        data = self._descriptors.read(int(self._index.arrays["shard"][episode]), start, end - start)
        numbers = read_numbers(data, Span(kind, 0, len(data)))
        return shape_numbers(numbers, path, self._leaves[path], int(self._index.lengths[episode]))

    def column(self, field: str) -> np.ndarray:
        """A small number field of all steps of all episodes, a memory map."""
        return self._index.arrays[f"{STEPS}{field}:value"]

    def image(self, field: str, episode: int, step: int) -> np.ndarray:
        """Read and decode one image.

        Raises:
            ValueError: the file changed or the image is damaged; names file and byte.
        """
        path = STEPS + field
        row = self._rows(episode).start + step
        offset = int(self._index.arrays[f"{path}:offset"][row])
        size = int(self._index.arrays[f"{path}:size"][row])
        shard = int(self._index.arrays["shard"][episode])
        try:
            return decode_image(self._descriptors.read(shard, offset, size), self._leaves[path])
        except ValueError as error:
            raise ValueError(f"{error} ({self._index.shards[shard]} byte {offset})") from None

    def texts(self, field: str, episode: int) -> list[str]:
        """A text field of all steps of an episode."""
        path = STEPS + field
        table = self._index.strings[path]
        return [table[i] for i in self._index.arrays[f"{path}:id"][self._rows(episode)]]

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """Episode-level facts of the record, by name without "episode_metadata/"."""
        return {
            path.removeprefix(METADATA): self._metadata_value(path, episode)
            for path, leaf in self._leaves.items()
            if not path.startswith(STEPS) and leaf.kind in (Kind.TEXT, Kind.NUMBER)
        }

    def _metadata_value(self, path: str, episode: int) -> Any:
        ids = self._index.arrays.get(f"{path}:id")
        if ids is not None:
            return self._index.strings[path][int(ids[episode])]
        values = self._index.arrays.get(f"{path}:value")
        return None if values is None else values[episode].tolist()

    def _rows(self, episode: int) -> slice:
        end = int(self._ends[episode])
        return slice(end - int(self._index.lengths[episode]), end)


class _Descriptors:
    """Open shard files of this process; survives fork (positioned reads) and pickling (opened again)."""

    def __init__(self, shards: Sequence[Path]):
        self._shards = list(shards)
        self._open: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a shard.

        Raises:
            ValueError: the file ends before that: it changed after it was indexed.
        """
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._open[shard] = os.open(self._shards[shard], os.O_RDONLY)
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"{self._shards[shard]}: ends before byte {offset + size}; reopen the dataset")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
