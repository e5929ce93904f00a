"""Random access to the steps of an RLDS split: numbers from the index, images by one positioned read each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.entry import DatasetEntry
from vla_adapt.episodes.example_proto import Span, read_numbers
from vla_adapt.episodes.feature_spec import STEPS, Kind, LeafSpec
from vla_adapt.episodes.image_codec import decode_image
from vla_adapt.episodes.index import StepIndex
from vla_adapt.episodes.index_build import shape_numbers
from vla_adapt.episodes.shards import RldsFolder
from vla_adapt.episodes.source import Episode
from vla_adapt.episodes.transforms import Motion, find_transforms

_METADATA = "episode_metadata/"


class RldsDataset:
    """One split of an RLDS dataset as an `EpisodeDataset`.

    Args:
        folder: the version folder.
        split: split name, part of the episode ids.
        index: the split's index.
        entry: how its fields map onto the embodiment.
        embodiment: the robot.
        check: refuse non-finite actions and states now rather than when they are met.

    Raises:
        ValueError: a field the entry names is missing (lists what exists) or of the wrong kind or width; NaN.
    """

    def __init__(
        self,
        folder: RldsFolder,
        split: str,
        index: StepIndex,
        entry: DatasetEntry,
        embodiment: Embodiment,
        check: bool = True,
    ):
        self.name, self.split = folder.name, split
        self.path, self.entry, self.embodiment = folder.path, entry, embodiment
        self._leaves, self._index = folder.leaves, index
        self._check_fields()
        self._ends = np.cumsum(index.lengths)
        transforms = find_transforms(entry.transforms)
        self._drop_first = sum(transform.drop_first for transform in transforms)
        self._dropped = self._drop_first + sum(transform.drop_last for transform in transforms)
        self._transforms = transforms
        self._descriptors = _Descriptors(index.shards)
        if check:
            self.check_finite()

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode, after the entry's transforms."""
        return np.maximum(self._index.lengths - self._dropped, 0)

    def __len__(self) -> int:
        return len(self._index.lengths)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}/{self.split}: episode {index} of {len(self)}")
        index %= len(self)
        motion = self.motion(index)
        texts = self._text(STEPS + self.entry.instruction, index) if self.entry.instruction else [""]
        return Episode(
            episode_id=self.episode_id(index),
            instruction=texts[min(self._drop_first, len(texts) - 1)],
            action=motion.action,
            state=motion.state,
            cameras=tuple(self.entry.cameras),
            extra_keys=tuple(self.entry.extra),
            read_image=partial(self._image, index),
            read_extra=partial(self._extra, index),
            read_metadata=partial(self.metadata, index),
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def episode_id(self, index: int) -> str:
        """A name for the episode that is stable across machines: "split/number" or the entry's own field."""
        if self.entry.episode_id is None:
            return f"{self.split}/{index}"
        return str(self._metadata_value(self.entry.episode_id, index))

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Episode-level facts of the record, by name without "episode_metadata/"."""
        return {
            path.removeprefix(_METADATA): self._metadata_value(path, index)
            for path, leaf in self._leaves.items()
            if not path.startswith(STEPS) and leaf.kind in (Kind.TEXT, Kind.NUMBER)
        }

    def motion(self, index: int) -> Motion:
        """Native action and state of an episode after the entry's transforms, float32."""
        action = self._concatenated(self.entry.action, index)
        motion = Motion(action, self._concatenated(self.entry.state, index) if self.entry.state else None)
        if len(action) <= self._dropped:
            keep = slice(0, 0)
            return Motion(action[keep], None if motion.state is None else motion.state[keep])
        for transform in self._transforms:
            motion = transform.apply(motion, self.embodiment)
        return motion

    def check_finite(self) -> None:
        """Refuse NaN and infinities in stored actions and states.

        Raises:
            ValueError: names dataset, episode and step of the first one.
        """
        for what, fields in (("action", self.entry.action), ("state", self.entry.state)):
            for field in fields:
                values = self._index.arrays[f"{STEPS}{field}:value"]
                if values.dtype.kind != "f" or np.isfinite(values).all():
                    continue
                bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
                row = int(np.argmax(bad))
                episode = int(np.searchsorted(self._ends, row, side="right"))
                step = row - int(self._ends[episode] - self._index.lengths[episode])
                raise ValueError(
                    f"{self.name}: episode {self.episode_id(episode)} step {step}: {what} field '{field}' "
                    f"is not finite ({int(bad.sum())} such steps in all); repair or drop the episode"
                )

    def _rows(self, index: int) -> slice:
        end = int(self._ends[index])
        return slice(end - int(self._index.lengths[index]), end)

    def _values(self, field: str, index: int) -> np.ndarray:
        """A number field of all raw steps of an episode, [T, ...], from the index or from the record."""
        path = STEPS + field
        indexed = self._index.arrays.get(f"{path}:value")
        if indexed is not None:
            return np.array(indexed[self._rows(index)])
        kind, start, end = (int(x) for x in self._index.arrays[f"{path}:span"][index])
        data = self._descriptors.read(int(self._index.arrays["shard"][index]), start, end - start)
        numbers = read_numbers(data, Span(kind, 0, len(data)))
        return shape_numbers(numbers, path, self._leaves[path], int(self._index.lengths[index]))

    def _concatenated(self, fields: Sequence[str], index: int) -> Float[np.ndarray, "T F"]:
        parts = [self._values(field, index).astype(np.float32, copy=False) for field in fields]
        parts = [part.reshape(len(part), -1) for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _extra(self, index: int, key: str) -> np.ndarray:
        length = int(self.lengths[index])
        return self._values(self.entry.extra[key], index)[self._drop_first : self._drop_first + length]

    def _image(self, index: int, t: int, camera: str) -> np.ndarray:
        path = STEPS + self.entry.cameras[camera]
        row = self._rows(index).start + self._drop_first + t
        offset = int(self._index.arrays[f"{path}:offset"][row])
        size = int(self._index.arrays[f"{path}:size"][row])
        shard = int(self._index.arrays["shard"][index])
        try:
            return decode_image(self._descriptors.read(shard, offset, size), self._leaves[path])
        except ValueError as error:
            raise ValueError(
                f"{self.name}: episode {self.episode_id(index)} step {t} camera '{camera}': {error} "
                f"({self._index.shards[shard]} byte {offset})"
            ) from None

    def _text(self, path: str, index: int) -> list[str]:
        table = self._index.strings[path]
        return [table[i] for i in self._index.arrays[f"{path}:id"][self._rows(index)]]

    def _metadata_value(self, path: str, index: int) -> Any:
        ids = self._index.arrays.get(f"{path}:id")
        if ids is not None:
            return self._index.strings[path][int(ids[index])]
        values = self._index.arrays.get(f"{path}:value")
        return None if values is None else values[index].tolist()

    def _check_fields(self) -> None:
        """Every field of the entry exists and is of the right kind; widths fit the embodiment."""
        wanted = [(field, Kind.NUMBER) for field in (*self.entry.action, *self.entry.state)]
        wanted += [(field, Kind.IMAGE) for field in self.entry.cameras.values()]
        wanted += [(field, Kind.NUMBER) for field in self.entry.extra.values()]
        wanted += [(self.entry.instruction, Kind.TEXT)] if self.entry.instruction else []
        for field, kind in wanted:
            leaf = self._leaves.get(STEPS + field)
            if leaf is None or leaf.kind is not kind:
                raise ValueError(self._no_field(field, kind, leaf))
        if self.entry.episode_id is not None and self.entry.episode_id not in self._leaves:
            raise ValueError(self._no_field(self.entry.episode_id, Kind.TEXT, None))
        for camera, spec in self.embodiment.cameras.items():
            if spec.required and camera not in self.entry.cameras:
                raise ValueError(
                    f"{self.name}: {self.embodiment.name} needs camera '{camera}', the entry maps "
                    f"{', '.join(self.entry.cameras) or 'none'}; image fields: {self._fields(Kind.IMAGE)}"
                )
        self._check_width("action", self.entry.action, self.embodiment.action_dim)
        if self.entry.state:
            self._check_width("state", self.entry.state, self.embodiment.proprio_dim)

    def _check_width(self, what: str, fields: Sequence[str], wanted: int) -> None:
        got = sum(int(np.prod(self._leaves[STEPS + field].shape)) for field in fields)
        indexed = all(f"{STEPS}{field}:value" in self._index.arrays for field in fields)
        if got != wanted or not indexed:
            raise ValueError(
                f"{self.name}: {what} ({' + '.join(fields)}) has width {got}, embodiment "
                f"{self.embodiment.name} wants {wanted}; choose another embodiment or other fields"
            )

    def _no_field(self, field: str, kind: Kind, leaf: LeafSpec | None) -> str:
        got = f"field '{field}' is {leaf}, wanted {kind.value}" if leaf else f"no field '{field}'"
        return f"{self.name}: {got}; {kind.value} fields: {self._fields(kind)}"

    def _fields(self, kind: Kind) -> str:
        names = [path.removeprefix(STEPS) for path, leaf in self._leaves.items() if leaf.kind is kind]
        return ", ".join(sorted(names)) or "none"


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
