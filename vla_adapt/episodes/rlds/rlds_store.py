"""Random access to the steps of an RLDS split: numbers from the index, images by one positioned read each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from vla_adapt.episodes.mapping.entry_fields import METADATA
from vla_adapt.episodes.rlds.example_proto import Buffer, Span
from vla_adapt.episodes.rlds.index import StepIndex, open_index
from vla_adapt.episodes.rlds.leaf_values import read_dtype, read_values, stored_keys
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.rlds.tfrecord import crc32c
from vla_adapt.episodes.storage.byte_source import ShardReader
from vla_adapt.episodes.storage.damage import OnError, warn_skipped
from vla_adapt.episodes.storage.feature_spec import STEPS, Kind, LeafSpec
from vla_adapt.episodes.storage.image_codec import decode_image
from vla_adapt.episodes.storage.text_runs import Runs, runs_of_numbers, runs_of_texts
from vla_adapt.suggest import did_you_mean


class RldsStore:
    """One split of an RLDS dataset as `StoredEpisodes`.

    Damage that reading the index cannot show, an image that does not decode, raises when it is read.

    Args:
        folder: the version folder.
        split: split name, part of the episode ids.
        index: the split's index; episodes it leaves out are told by a warning.
        verify_images: check the CRC of each image of one-a-step fields when it is read; the index must hold
            them.
        image_scale: decode JPEGs at the smallest of the scales 1/8 .. 8/8 that leaves both sides at least
            this many pixels: faster, but not TensorFlow's pixels, so not for evaluation. None: full size.

    Attributes:
        skipped: what was left out: file, record and reason of each damage.
        lost: how many episodes by it.
    """

    def __init__(
        self,
        folder: RldsFolder,
        split: str,
        index: StepIndex,
        verify_images: bool = False,
        image_scale: int | None = None,
    ):
        self.name, self.split, self.path = folder.name, split, Path(folder.path)
        self.leaves, self._index = folder.leaves, index
        self._verify_images, self.image_scale = verify_images, image_scale
        self.fields = {
            path.removeprefix(STEPS): leaf for path, leaf in folder.leaves.items() if path.startswith(STEPS)
        }
        self._fact_paths = {
            path.removeprefix(METADATA): path for path in folder.leaves if not path.startswith(STEPS)
        }
        self._view_index()
        self._reader = ShardReader(index.shards)
        self.skipped = [text for text, _ in index.notes]
        self.lost = sum(episodes for _, episodes in index.notes)
        if self.skipped:
            warn_skipped(f"{self.name}/{split}", self.skipped, self.lost, len(index.lengths))

    @classmethod
    def open(
        cls,
        folder: RldsFolder,
        split: str,
        cache_dir: str | Path | None = None,
        verify_crc: bool = True,
        on_error: OnError = "error",
        verify_images: bool = False,
        image_scale: int | None = None,
    ) -> RldsStore:
        """Index a split, or find its index, and open it; arguments as of `open_index` and the class.

        Raises:
            ValueError: damaged data, or nowhere to keep the index.
        """
        index = open_index(folder, split, cache_dir, verify_crc, on_error, image_crc=verify_images)
        return cls(folder, split, index, verify_images, image_scale)

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Recorded steps of each episode."""
        return self._index.lengths

    @property
    def ordinals(self) -> Int64[np.ndarray, " E"]:
        """Number of each episode among all recorded ones, left out ones too: the same however many are."""
        return self._index.arrays["ordinal"]

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of an episode, from the index or, if large or ragged, the record.

        Returns:
            [T, *shape] in the schema's dtype (float32 for bfloat16, and for float64 unless stored as bytes).
            A ragged field: an object array of T arrays, nested once more for every further level.

        Raises:
            ValueError: no such field of numbers.
        """
        path, leaf = self._leaf(field, Kind.NUMBER)
        indexed = self._index.arrays.get(f"{path}:value")
        if indexed is not None:
            values = np.array(indexed[self._rows(episode)])
            self._index.release(f"{path}:value")
            return values
        return self._values(path, leaf, episode)

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        """A fixed-size number field of all steps of all episodes; a small one is a memory map."""
        path, leaf = self._leaf(field, Kind.NUMBER)
        indexed = self._index.arrays.get(f"{path}:value")
        if indexed is not None:
            return indexed
        if leaf.kind is Kind.RAGGED:
            raise ValueError(f"{self.name}: field '{field}' is {leaf}, wanted numbers of one size")
        return np.concatenate([self._values(path, leaf, episode) for episode in range(len(self.lengths))])

    def release(self) -> None:
        """Let go of what `column` brought into memory."""
        self._index.release()

    def image(self, field: str, episode: int, step: int) -> np.ndarray:
        """Read and decode one image.

        Raises:
            ValueError: the file changed or the image is damaged; names file and byte.
        """
        return self.fetch_image(field, episode, step)()

    def fetch_image(self, field: str, episode: int, step: int) -> Callable[[], np.ndarray]:
        """Read one image; the returned call decodes it. Raises as `image`, each half what it can find."""
        column = self._one_image(field)
        data, offset = self._encoded(column, self._row(episode, step), episode)
        return partial(self._decode, data, column.leaf, partial(self._byte, episode, offset))

    def prefetcher(self) -> Callable[[str, int, int], None] | None:
        """A call (field, episode, step) that fetches an image in the background; None: nothing is remote."""
        return self._prefetch if self._reader.is_remote else None

    def _prefetch(self, field: str, episode: int, step: int) -> None:
        column, row = self._one_image(field), self._row(episode, step)
        shard = self._shard_numbers[episode]
        self._reader.prefetch(shard, column.offsets[row], column.sizes[row])

    def images(self, field: str, episode: int, step: int) -> list[Any]:
        """All images of one step of a field that holds a sequence of them (nested lists: of sequences)."""
        path, leaf = self._leaf(field, Kind.IMAGE)
        if leaf.kind is Kind.IMAGE:
            return [self.image(field, episode, step)]
        self._row(episode, step)
        return self._decode_all(
            self._values(path, leaf, episode)[step],
            leaf,
            lambda: f"{self.locate(episode)} field '{path}' step {step}",
        )

    def encoded_image(self, field: str, episode: int, step: int) -> bytes:
        """The stored bytes (JPEG, PNG) of one image; refusals as of `image`."""
        return self._encoded(self._one_image(field), self._row(episode, step), episode)[0]

    def texts(self, field: str, episode: int) -> list[Any]:
        """A text field of all steps of an episode: T strings, or for text tensors T object arrays."""
        path, leaf = self._leaf(field, Kind.TEXT)
        ids = self._index.arrays.get(f"{path}:id")
        if ids is None:
            return list(self._values(path, leaf, episode))
        numbers = ids[self._rows(episode)]
        if len(numbers) and (numbers == numbers[0]).all():
            return [self._index.text(path, int(numbers[0]))] * len(numbers)
        table = {number: self._index.text(path, int(number)) for number in np.unique(numbers)}
        return [table[number] for number in numbers]

    def text_runs(self, field: str, episode: int) -> Runs:
        """(first step, text) of each stretch of steps of an episode with one text."""
        path, _ = self._leaf(field, Kind.TEXT)
        ids = self._index.arrays.get(f"{path}:id")
        if ids is None:
            return runs_of_texts(self.texts(field, episode))
        return runs_of_numbers(ids[self._rows(episode)], partial(self._index.text, path))

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """Episode-level facts of the record, by name without "episode_metadata/"; read when asked for."""
        return _Facts(self, self._fact_paths, episode)

    @property
    def fact_leaves(self) -> dict[str, LeafSpec]:
        """What is known of the kinds of `metadata`: dtypes of numbers as they are read, and images."""
        found = {name: self.leaves[path] for name, path in self._fact_paths.items()}
        return {
            name: replace(leaf, dtype=read_dtype(leaf).name) if leaf.kind is Kind.NUMBER else leaf
            for name, leaf in found.items()
            if leaf.kind in (Kind.NUMBER, Kind.IMAGE)
        }

    def fact(self, path: str, episode: int) -> Any:
        """The episode-level value at `path`: str, number, list of numbers, array or image; None: absent.

        Raises:
            ValueError: the record does not hold what the schema says.
        """
        leaf, arrays = self.leaves[path], self._index.arrays
        if f"{path}:id" in arrays:
            return self._index.text(path, int(arrays[f"{path}:id"][episode]))
        if f"{path}:value" in arrays:
            return arrays[f"{path}:value"][episode].tolist()
        if leaf.kind is Kind.IMAGE:
            data, offset = self._encoded(_ImageColumn.of(arrays, path, leaf), episode, episode)
            return self._decode(data, leaf, partial(self._byte, episode, offset))
        if leaf.optional and not arrays[f"{stored_keys(path, leaf)[0]}:span"][episode][0]:
            return None
        value = self._values(path, leaf, episode)
        if leaf.holds is Kind.IMAGE:
            return self._decode_all(value, leaf, lambda: f"{self.locate(episode)} field '{path}'")
        return value.tolist() if leaf.kind is Kind.NUMBER else value

    def _leaf(self, field: str, kind: Kind) -> tuple[str, LeafSpec]:
        leaf = self.fields.get(field)
        if leaf is None:
            raise ValueError(f"{self.name}: no field '{field}'; {did_you_mean(field, self.fields)}")
        if leaf.holds is not kind:
            raise ValueError(f"{self.name}: field '{field}' is {leaf}, wanted {kind.value}")
        return STEPS + field, leaf

    def _one_image(self, field: str) -> _ImageColumn:
        """Where the images of a field are that has one a step; found once, for it is met per sample."""
        found = self._image_columns.get(field)
        if found is None:
            path, leaf = self._leaf(field, Kind.IMAGE)
            if leaf.kind is Kind.RAGGED:
                what = f"field '{field}' holds several images a step; read it by images()"
                raise ValueError(f"{self.name}: {what}")
            found = self._image_columns[field] = _ImageColumn.of(self._index.arrays, path, leaf)
        return found

    def _values(self, path: str, leaf: LeafSpec, episode: int) -> Any:
        """Values that stayed in the record."""
        steps = int(self._index.lengths[episode]) if path.startswith(STEPS) else None
        try:
            return read_values(path, leaf, steps, partial(self._stored_list, episode))
        except ValueError as error:
            raise ValueError(f"{self.locate(episode)}: {error}") from None

    def _stored_list(self, episode: int, key: str) -> tuple[Buffer, Span]:
        kind, start, end = (int(x) for x in self._index.arrays[f"{key}:span"][episode])
        data = self._reader.read(self._shard_numbers[episode], start, end - start) if kind else b""
        return data, Span(kind, 0, len(data))

    def _encoded(self, column: _ImageColumn, row: int, episode: int) -> tuple[bytes, int]:
        """An image's stored bytes, and at which byte of the episode's shard they begin."""
        offset = column.offsets[row]
        data = self._reader.read(self._shard_numbers[episode], offset, column.sizes[row])
        if self._verify_images and crc32c(data) != int(column.checksums[row]):  # type: ignore[index]
            where = self._byte(episode, offset)
            raise ValueError(f"CRC of the image is wrong, the file has changed ({where}); copy it again")
        return data, offset

    def _decode(self, data: bytes, leaf: LeafSpec, where: Callable[[], str]) -> np.ndarray:
        try:
            return decode_image(data, leaf, self.image_scale)
        except ValueError as error:
            raise ValueError(f"{error} ({where()})") from None

    def _byte(self, episode: int, offset: int) -> str:
        return f"{self._index.shards[self._shard_numbers[episode]].location} byte {offset}"

    def _decode_all(self, encoded: Any, leaf: LeafSpec, where: Callable[[], str]) -> Any:
        return [
            self._decode_all(item, leaf, where)
            if isinstance(item, np.ndarray)
            else self._decode(item, leaf, where)
            for item in encoded
        ]

    def locate(self, episode: int) -> str:
        """Shard and name of an episode, for messages."""
        shard = self._shard_numbers[episode]
        return f"{self._index.shards[shard].location} episode {self.split}/{self.ordinals[episode]}"

    def _row(self, episode: int, step: int) -> int:
        length = self._lengths[episode]
        if not 0 <= step < length:
            raise ValueError(f"{self.locate(episode)}: step {step} asked, it has {length}")
        return self._ends[episode] - length + step

    def _rows(self, episode: int) -> slice:
        return slice(self._ends[episode] - self._lengths[episode], self._ends[episode])

    def _view_index(self) -> None:
        """Memory views, here and in image columns, give plain integers in a third of an array's time."""
        lengths = self._index.lengths
        self._lengths, self._ends = lengths.data, np.cumsum(lengths).data
        self._shard_numbers = self._index.arrays["shard"].data
        self._image_columns: dict[str, _ImageColumn] = {}

    def __getstate__(self) -> dict[str, Any]:
        views = ("_lengths", "_ends", "_shard_numbers", "_image_columns")
        return {key: value for key, value in self.__dict__.items() if key not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._view_index()


class _ImageColumn(NamedTuple):
    """Where the images of one field lie in their shards, by row of the index."""

    leaf: LeafSpec
    offsets: memoryview[int]
    sizes: memoryview[int]
    checksums: Shaped[np.ndarray, " N"] | None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], path: str, leaf: LeafSpec) -> _ImageColumn:
        checksums = arrays.get(f"{path}:crc")
        return cls(leaf, arrays[f"{path}:offset"].data, arrays[f"{path}:size"].data, checksums)


class _Facts(Mapping[str, Any]):
    """Episode-level values of one episode, read when asked for."""

    def __init__(self, store: RldsStore, paths: Mapping[str, str], episode: int):
        self._store, self._paths, self._episode = store, paths, episode

    def __getitem__(self, name: str) -> Any:
        return self._store.fact(self._paths[name], self._episode)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
