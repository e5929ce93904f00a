"""A stored dataset seen as one robot's episodes: fields chosen by a `DatasetEntry`, checked, transformed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.entry import DatasetEntry
from vla_adapt.episodes.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.source import Episode
from vla_adapt.episodes.stored import StoredEpisodes
from vla_adapt.episodes.transforms import Motion, find_transforms

METADATA = "episode_metadata/"


class MappedDataset:
    """Stored episodes as an `EpisodeDataset`.

    Args:
        store: the recorded fields.
        entry: how they map onto the embodiment.
        embodiment: the robot.
        check: refuse non-finite actions and states now rather than when they are met.

    Raises:
        ValueError: a field the entry names is missing (lists what exists) or of the wrong kind or width; NaN.
    """

    def __init__(
        self, store: StoredEpisodes, entry: DatasetEntry, embodiment: Embodiment, check: bool = True
    ):
        self.name, self.split, self.path = store.name, store.split, store.path
        self.entry, self.embodiment = entry, embodiment
        self.store = store
        self._check_fields()
        transforms = find_transforms(entry.transforms)
        self._drop_first = sum(transform.drop_first for transform in transforms)
        self._dropped = self._drop_first + sum(transform.drop_last for transform in transforms)
        self._transforms = transforms
        if check:
            self.check_finite()

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode, after the entry's transforms."""
        return np.maximum(self.store.lengths - self._dropped, 0)

    def __len__(self) -> int:
        return len(self.store.lengths)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}/{self.split}: episode {index} of {len(self)}")
        index %= len(self)
        motion = self.motion(index)
        texts = self.store.texts(self.entry.instruction, index) if self.entry.instruction else [""]
        return Episode(
            episode_id=self.episode_id(index),
            instruction=texts[min(self._drop_first, len(texts) - 1)],
            action=motion.action,
            state=motion.state,
            cameras=tuple(self.entry.cameras),
            extra_keys=tuple(self.entry.extra),
            read_image=partial(self._image, index),
            read_extra=partial(self._extra, index),
            read_metadata=partial(self.store.metadata, index),
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def episode_id(self, index: int) -> str:
        """A name for the episode that is stable across machines: "split/number" or the entry's own field."""
        if self.entry.episode_id is None:
            return f"{self.split}/{index}"
        return str(self.store.metadata(index)[self.entry.episode_id.removeprefix(METADATA)])

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
        ends = np.cumsum(self.store.lengths)
        for what, fields in (("action", self.entry.action), ("state", self.entry.state)):
            for field in fields:
                values = self.store.column(field)
                if values.dtype.kind != "f" or np.isfinite(values).all():
                    continue
                bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
                row = int(np.argmax(bad))
                episode = int(np.searchsorted(ends, row, side="right"))
                step = row - int(ends[episode] - self.store.lengths[episode])
                raise ValueError(
                    f"{self.name}: episode {self.episode_id(episode)} step {step}: {what} field '{field}' "
                    f"is not finite ({int(bad.sum())} such steps in all); repair or drop the episode"
                )

    def _concatenated(self, fields: Sequence[str], index: int) -> Float[np.ndarray, "T F"]:
        parts = [self.store.numbers(field, index).astype(np.float32, copy=False) for field in fields]
        parts = [part.reshape(len(part), -1) for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _extra(self, index: int, key: str) -> np.ndarray:
        length = int(self.lengths[index])
        return self.store.numbers(self.entry.extra[key], index)[self._drop_first : self._drop_first + length]

    def _image(self, index: int, t: int, camera: str) -> np.ndarray:
        try:
            return self.store.image(self.entry.cameras[camera], index, self._drop_first + t)
        except ValueError as error:
            where = f"{self.name}: episode {self.episode_id(index)} step {t} camera '{camera}'"
            raise ValueError(f"{where}: {error}") from None

    def _check_fields(self) -> None:
        """Every field of the entry exists and is of the right kind; widths fit the embodiment."""
        wanted = [(field, Kind.NUMBER) for field in (*self.entry.action, *self.entry.state)]
        wanted += [(field, Kind.IMAGE) for field in self.entry.cameras.values()]
        wanted += [(field, Kind.NUMBER) for field in self.entry.extra.values()]
        wanted += [(self.entry.instruction, Kind.TEXT)] if self.entry.instruction else []
        for field, kind in wanted:
            leaf = self.store.fields.get(field)
            if leaf is None or leaf.kind is not kind:
                raise ValueError(self._no_field(field, kind, leaf))
        self._check_episode_id()
        for camera, spec in self.embodiment.cameras.items():
            if spec.required and camera not in self.entry.cameras:
                raise ValueError(
                    f"{self.name}: {self.embodiment.name} needs camera '{camera}', the entry maps "
                    f"{', '.join(self.entry.cameras) or 'none'}; image fields: {self._fields(Kind.IMAGE)}"
                )
        self._check_width("action", self.entry.action, self.embodiment.action_dim)
        if self.entry.state:
            self._check_width("state", self.entry.state, self.embodiment.proprio_dim)

    def _check_episode_id(self) -> None:
        wanted = self.entry.episode_id
        if wanted is None or not len(self):
            return
        metadata: Mapping[str, Any] = self.store.metadata(0)
        if wanted.removeprefix(METADATA) not in metadata:
            raise ValueError(
                f"{self.name}: no episode field '{wanted}' to name episodes by; "
                f"it has {', '.join(sorted(metadata)) or 'none'}"
            )

    def _check_width(self, what: str, fields: Sequence[str], wanted: int) -> None:
        got = sum(int(np.prod(self.store.fields[field].shape)) for field in fields)
        if got != wanted:
            raise ValueError(
                f"{self.name}: {what} ({' + '.join(fields)}) has width {got}, embodiment "
                f"{self.embodiment.name} wants {wanted}; choose another embodiment or other fields"
            )

    def _no_field(self, field: str, kind: Kind, leaf: LeafSpec | None) -> str:
        got = f"field '{field}' is {leaf}, wanted {kind.value}" if leaf else f"no field '{field}'"
        return f"{self.name}: {got}; {kind.value} fields: {self._fields(kind)}"

    def _fields(self, kind: Kind) -> str:
        return (
            ", ".join(sorted(name for name, leaf in self.store.fields.items() if leaf.kind is kind)) or "none"
        )
