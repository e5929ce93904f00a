"""A stored dataset seen as one robot's episodes: fields chosen by a `DatasetEntry`, checked, transformed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mapping.computed import find_function
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.entry_fields import METADATA, check_entry, number_widths
from vla_adapt.episodes.mapping.image_quirks import undo_quirks
from vla_adapt.episodes.mapping.instruction_reader import InstructionReader, kept_runs
from vla_adapt.episodes.mapping.kept_episodes import KeptEpisodes, left_out, recorded_numbers
from vla_adapt.episodes.mapping.native_vector import NativeVector, Numbers
from vla_adapt.episodes.mapping.stable_name import StableName, stable_name
from vla_adapt.episodes.mapping.transforms import Motion, find_transforms
from vla_adapt.episodes.source import Episode, Observations, PendingImage
from vla_adapt.episodes.storage.damage import OnError, warn_skipped
from vla_adapt.episodes.storage.feature_spec import Kind
from vla_adapt.episodes.storage.stored import StoredEpisodes, fetcher, find_prefetcher, release_memory
from vla_adapt.episodes.storage.text_runs import Runs, every_step


class MappedDataset:
    """Stored episodes as an `EpisodeDataset`.

    Args:
        store: the recorded fields.
        entry: how they map onto the embodiment.
        embodiment: the robot.
        check: look for non-finite actions and states now rather than when they are met.
        on_error: what to do about episodes that have any: refuse the dataset, or leave them out, say so in
            one warning and list them in `skipped`. With "skip" and `check` an image that cannot be read does
            not end a run: the nearest earlier (else later) one of its episode stands in, told by a warning
            on standard error.
        lasting_name: of the dataset, "" if it has none; default the store's name. See `stable_name`.

    Attributes:
        name: the lasting one, or the store's.
        skipped: what was left out, by the store or for NaN: where and why. Also what this very process stood
            in for; workers of a DataLoader warn of theirs (once each) and keep their own lists.
        lost: how many episodes were left out.
        rate_hz: at which the data was recorded, as the entry or the store says; None: neither does.
        image_scale: see `opening.open_dataset`.

    Raises:
        ValueError: a field the entry names is missing (lists what exists) or of the wrong kind or width; NaN.
    """

    def __init__(
        self,
        store: StoredEpisodes,
        entry: DatasetEntry,
        embodiment: Embodiment,
        check: bool = True,
        on_error: OnError = "error",
        lasting_name: str | None = None,
    ):
        self.lasting_name = store.name if lasting_name is None else lasting_name
        self.name, self.split, self.path = self.lasting_name or store.name, store.split, store.path
        self.entry, self.embodiment = entry, embodiment
        self.rate_hz: float | None = entry.rate_hz or getattr(store, "rate_hz", None)
        self.image_scale: int | None = getattr(store, "image_scale", None)
        self._cameras = entry.shown_cameras
        self._quirks = entry.shown_quirks
        self._stands_in = check and on_error == "skip"
        self.store = store
        self._recorded = recorded_numbers(store)
        check_entry(store, entry)
        widths = number_widths(store, entry)
        self._action = NativeVector(embodiment, "action", entry.action, widths, self.name)
        self._state = NativeVector(embodiment, "proprio", entry.state, widths, self.name)
        if not self._action.fields:
            raise ValueError(f"{self.name}: the entry maps no action at all; name its fields")
        transforms = find_transforms(entry.transforms)
        self._drop_first = sum(transform.drop_first for transform in transforms)
        self._dropped = self._drop_first + sum(transform.drop_last for transform in transforms)
        self._transforms = transforms
        if check and on_error == "skip":
            self._leave_out_non_finite()
        elif check:
            self.check_finite()
        release_memory(self.store)
        self.skipped, self.lost = left_out(self.store)
        self._fetch_stored = fetcher(self.store)
        self._instructions = InstructionReader(self.store, entry)
        self._lengths = np.maximum(self.store.lengths - self._dropped, 0)
        self._lengths.setflags(write=False)

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode, after the entry's transforms."""
        return self._lengths

    def __len__(self) -> int:
        return len(self.store.lengths)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}/{self.split}: episode {index} of {len(self)}")
        index %= len(self)
        motion = self.motion(index)
        return Episode(
            action=motion.action,
            state=motion.state,
            action_omits=self._action.omits,
            state_omits=self._state.omits,
            **self._shown(index),
        )

    def observations(self, index: int) -> Observations:
        """Episode `index` (0 or above) without its motion: no number of it is read or converted."""
        return Observations(length=int(self._lengths[index]), **self._shown(index))

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def prefetcher(self) -> Callable[[int, int, str], None] | None:
        """A call (episode, step, camera) that fetches an image in the background; None: nothing is remote."""
        inner = find_prefetcher(self.store)
        return None if inner is None else partial(self._prefetch, inner)

    def _prefetch(self, inner: Callable[[str, int, int], None], index: int, t: int, camera: str) -> None:
        if camera in self._cameras:
            inner(self._cameras[camera], index, self._drop_first + t)

    def episode_id(self, index: int) -> str:
        """A name for the episode that is stable across machines: "split/number" or the entry's own field."""
        if self.entry.episode_id is None:
            return f"{self.split}/{self._recorded[index]}"
        return str(self.store.metadata(index)[self.entry.episode_id.removeprefix(METADATA)])

    def stable_name(self, index: int) -> StableName:
        """Names of dataset and episode that copies, renamed folders and conversions keep."""
        return stable_name(self.lasting_name, self.episode_id(index), int(self.store.lengths[index]))

    def recorded_motion(self, index: int) -> bytes:
        """The stored numbers of an episode that its action and state are made of."""
        return b"".join(self.store.numbers(field, index).tobytes() for field in self.entry.number_fields)

    def instruction(self, index: int) -> str:
        """Task of an episode in words, as of its first kept step; "" when the entry names no field."""
        return next((text for _, text in self._instruction_runs(index)), "")

    def instructions(self, index: int) -> tuple[str, ...]:
        """The different instructions of an episode's kept steps, each once, in order."""
        return tuple(dict.fromkeys(text for _, text in self._instruction_runs(index)))

    def recorded_instructions(self, index: int) -> list[str]:
        """The instruction of each recorded step, those that the entry's transforms drop included."""
        return every_step(self._instructions.runs(index), int(self.store.lengths[index]))

    def _instruction_runs(self, index: int) -> Runs:
        runs = self._instructions.runs(index)
        return runs if len(runs) < 2 else kept_runs(runs, self._drop_first, int(self._lengths[index]))

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Facts about an episode as a whole."""
        return self.store.metadata(index)

    def motion(self, index: int) -> Motion:
        """Native action and state of an episode after the entry's transforms, float32."""
        if not self._lengths[index]:
            nothing = [np.zeros((0, vector.width), np.float32) for vector in (self._action, self._state)]
            return Motion(nothing[0], nothing[1] if self._state.fields else None)
        numbers = self._numbers(index)
        motion = Motion(self._action.read(numbers), self._state.read(numbers) if self._state.fields else None)
        for transform in self._transforms:
            motion = transform.apply(motion, self.embodiment)
        return motion

    def check_finite(self) -> None:
        """Refuse NaN and infinities in stored actions and states.

        Raises:
            ValueError: names dataset, episode and step of the first one.
        """
        for _, text in self._non_finite():
            raise ValueError(text)

    def _leave_out_non_finite(self) -> None:
        """Go on with the episodes that have no NaN, and warn about the rest."""
        reasons = dict(reversed(list(self._non_finite())))
        if not reasons:
            return
        kept = np.setdiff1d(np.arange(len(self)), list(reasons))
        if not len(kept):
            raise ValueError(f"{self.name}: no episode without NaN is left: {reasons[min(reasons)]}")
        texts = [reasons[episode] for episode in sorted(reasons)]
        warn_skipped(f"{self.name}/{self.split}", texts, len(texts), len(kept))
        self.store = KeptEpisodes(self.store, kept, texts)
        self._recorded = recorded_numbers(self.store)

    def _non_finite(self) -> Iterator[tuple[int, str]]:
        """(episode, what and where) of every field with NaN or infinity, episode by episode."""
        for what, vector in (("action", self._action), ("state", self._state)):
            for field in vector.fields:
                formula = self.entry.computed.get(field)
                columns = None if formula else vector.columns(field)
                for stored in formula.of if formula else (field,):
                    yield from self._non_finite_in(what, stored, columns)

    def _non_finite_in(self, what: str, field: str, columns: list[int] | None) -> Iterator[tuple[int, str]]:
        values = self.store.column(field)
        if values.dtype.kind != "f":
            return
        values = values.reshape(len(values), math.prod(values.shape[1:]))
        bad = ~np.isfinite(values if columns is None else values[:, columns]).all(axis=1)
        if not bad.any():
            return
        ends = np.cumsum(self.store.lengths)
        rows = np.flatnonzero(bad)
        episodes, first = np.unique(np.searchsorted(ends, rows, side="right"), return_index=True)
        for episode, row in zip(episodes.tolist(), rows[first].tolist(), strict=True):
            step = row - int(ends[episode] - self.store.lengths[episode])
            yield (
                episode,
                f"{self.name}: episode {self.episode_id(episode)} step {step}: {what} field '{field}' "
                f"is not finite ({int(bad.sum())} such steps in all), in {self.store.locate(episode)}; "
                "repair or drop the episode",
            )

    def _numbers(self, index: int) -> Numbers:
        """Reader of an episode's stored and computed number fields, each read once."""
        read: dict[str, Shaped[np.ndarray, "T ..."]] = {}

        def numbers(field: str) -> Shaped[np.ndarray, "T ..."]:
            if field not in read:
                formula = self.entry.computed.get(field)
                if formula is None:
                    read[field] = self.store.numbers(field, index)
                else:
                    read[field] = find_function(formula.function).apply(*map(numbers, formula.of))
            return read[field]

        return numbers

    def _shown(self, index: int) -> dict[str, Any]:
        runs = self._instruction_runs(index) or ((0, ""),)
        return {
            "episode_id": self.episode_id(index),
            "instruction": runs[0][1],
            "instruction_changes": runs[1:],
            "cameras": tuple(self._cameras),
            "extra_keys": tuple(self.entry.extra),
            "read_image": partial(self._image, index),
            "read_extra": partial(self._extra, index),
            "read_metadata": partial(self.store.metadata, index),
            "depth_cameras": tuple(self.entry.depth),
            "read_depth": partial(self._depth, index),
            "fetch_image": partial(self._fetch, index),
        }

    def _extra(self, index: int, key: str) -> np.ndarray:
        length = int(self._lengths[index])
        return self.store.numbers(self.entry.extra[key], index)[self._drop_first : self._drop_first + length]

    def _image(self, index: int, t: int, camera: str) -> np.ndarray:
        return self._fetch(index, t, camera)()

    def _fetch(self, index: int, t: int, camera: str) -> PendingImage:
        field, step = self._cameras[camera], self._drop_first + t
        try:
            pending = self._fetch_stored(field, index, step)
        except ValueError as error:
            image = self._instead(error, index, t, camera)
            return partial(undo_quirks, image, self._quirks[camera])
        return partial(self._decode, pending, index, t, camera)

    def _decode(self, pending: PendingImage, index: int, t: int, camera: str) -> np.ndarray:
        try:
            image = pending()
        except ValueError as error:
            image = self._instead(error, index, t, camera)
        return undo_quirks(image, self._quirks[camera])

    def _instead(self, error: ValueError, index: int, t: int, camera: str) -> np.ndarray:
        """What stands in for an image that cannot be read: the one nearest before step t, else after it.

        Told once. Raises ValueError, with the place, unless damage is skipped and there is one.
        """
        reason = f"{self.name}: episode {self.episode_id(index)} step {t} camera '{camera}': {error}"
        if not self._stands_in:
            raise ValueError(reason) from None
        field = self._cameras[camera]
        for step in (*range(t - 1, -1, -1), *range(t + 1, int(self.lengths[index]))):
            try:
                image = self.store.image(field, index, self._drop_first + step)
            except ValueError:
                continue
            text = f"{reason}; the image of step {step} stands in"
            if text not in self.skipped:
                self.skipped.append(text)
                warnings.warn(text, stacklevel=6)
            return image
        raise ValueError(f"{reason}; no other image of the episode can be read")

    def _depth(self, index: int, t: int, camera: str) -> Float[np.ndarray, "h w"]:
        depth, step = self.entry.depth[camera], self._drop_first + t
        if self.store.fields[depth.field].kind is Kind.IMAGE:
            values = self.store.image(depth.field, index, step)
        else:
            values = self.store.numbers(depth.field, index)[step]
        return values.reshape(values.shape[:2]).astype(np.float32) * np.float32(depth.scale)
