"""HDF5 demonstrations as `StoredEpisodes`: robomimic, LIBERO, ALOHA, or any group per episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vla_adapt.episodes.hdf5.hdf5_files import OpenFiles, open_hdf5
from vla_adapt.episodes.hdf5.hdf5_index import open_hdf5_index
from vla_adapt.episodes.hdf5.hdf5_layout import (
    DEFAULT_SPLIT,
    INSTRUCTION,
    LIBERO_ATTRIBUTES,
    as_text,
    derived_instruction,
    encoded,
    field_names,
)
from vla_adapt.episodes.hdf5.hdf5_splits import episodes_by_split
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.storage.damage import OnError, warn_skipped
from vla_adapt.episodes.storage.feature_spec import LeafSpec
from vla_adapt.episodes.storage.format_marks import hdf5_files
from vla_adapt.episodes.storage.image_codec import decode_image
from vla_adapt.episodes.storage.split_names import unknown_split


class Hdf5Store:
    """One split of an HDF5 file, or of a folder of them, as `StoredEpisodes`.

    Fields are paths inside an episode's group: "actions", "obs/agentview_rgb", "observations/qpos",
    "observations/images/cam_high". Images are [T, h, w, 3] or [T, h, w, 1] uint8 (gray is given as three
    equal channels), or rows of JPEG or PNG bytes, padded with zeros or not. Words are a string data set, one
    string for the episode, or a string attribute of the episode, its file or a group between; LIBERO's
    `problem_info` (or BDDL file name) gives "language_instruction" where nothing else does.

    Args:
        path: the file, or a folder whose files (in natural order) make one dataset.
        split: a robomimic filter key ("train", "valid", ...) or "all"; "train" is, of a file without such a
            key, all that no key of held-out episodes (`hdf5_splits.HELD_OUT_KEYS`) names.
        required: fields that every episode must have, at equal lengths; the first one counts the steps.
        cache_dir: where to keep the index; default beside the dataset, else in the user's cache.
        on_error: "error": refuse damaged data; "skip": leave damaged files and episodes out and say so in
            one warning.
        image_scale: decode JPEG rows at a smaller scale, see `image_codec.decode_image`.

    Attributes:
        skipped: what was left out, of any split: file, episode and reason of each damage.
        lost: how many episodes by it.
        splits: every split -> its episodes' numbers among those of "all".

    Raises:
        ValueError: no such file, a damaged one, an unknown or empty split, an episode whose required fields
            are missing or of different lengths or shapes; one line naming file, episode and field.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = DEFAULT_SPLIT,
        required: Sequence[str] = ("actions",),
        cache_dir: str | Path | None = None,
        on_error: OnError = "error",
        image_scale: int | None = None,
    ):
        self.image_scale = image_scale
        self.path, self.split = Path(path), split
        files = hdf5_files(self.path)
        if not files:
            raise ValueError(f"{self.path}: no .hdf5 or .h5 file there")
        self.name = self.path.stem if self.path.is_file() else self.path.name
        folder = self.path.parent if self.path.is_file() else self.path
        self._index = open_hdf5_index(folder, files, required, cache_dir, on_error)
        self._all_lengths = np.array(self._index.contents.length, np.int64)
        self._ends = np.cumsum(self._all_lengths)
        self.splits = episodes_by_split(self._index.contents)
        self._episodes = self._chosen(split)
        self.skipped = [text for text, _ in self._index.notes]
        self.lost = sum(episodes for _, episodes in self._index.notes)
        if self.skipped:
            warn_skipped(str(self.path), self.skipped, self.lost, len(self._all_lengths))
        self._files = OpenFiles(files)

    @staticmethod
    def names(path: Path) -> list[str]:
        """Data sets inside the episodes of the first file, for who has yet to write an entry."""
        with open_hdf5(hdf5_files(path)[0]) as file:
            return field_names(file)

    @staticmethod
    def with_episode_names(entry: DatasetEntry) -> DatasetEntry:
        """The entry with episodes named by file and group, if it names them by nothing else.

        Such a name stays the same whichever split an episode is read through.
        """
        return entry if entry.episode_id else entry.model_copy(update={"episode_id": "episode"})

    @property
    def fields(self) -> Mapping[str, LeafSpec]:
        """Per-step fields."""
        return self._index.contents.fields

    @property
    def partial_fields(self) -> Mapping[str, str]:
        """Data sets that are none of `fields`, because not all episodes have them alike, and why."""
        return self._index.contents.partial

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Recorded steps of each episode."""
        return self._all_lengths[self._episodes]

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of an episode, from the index or the file.

        Raises:
            ValueError: the field is missing there, damaged, or of another length than the episode.
        """
        indexed = self._index.columns.get(field)
        if indexed is not None:
            return np.array(indexed[self._rows(episode)])
        leaf = self.fields[field]
        if not self.lengths[episode]:
            return np.zeros((0, *leaf.shape), leaf.dtype)
        return self._checked(field, episode).astype(np.dtype(leaf.dtype), copy=False)

    def exact_dtype(self, field: str) -> np.dtype:
        """Of a number field as stored in any episode; the widest where they differ."""
        places = [self._place(episode) for episode in np.flatnonzero(self.lengths).tolist()]
        return np.result_type(*{self._files.dtype(file, f"{group}/{field}") for file, group in places})

    def exact_numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """`numbers` as stored: 64-bit floats stay what they are."""
        return self._checked(field, episode) if self.lengths[episode] else self.numbers(field, episode)

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        """A small number field of all steps of all episodes of the split, in order."""
        indexed = self._index.columns.get(field)
        if indexed is not None and self._is_everything:
            return indexed
        return np.concatenate([self.numbers(field, episode) for episode in range(len(self._episodes))])

    def image(self, field: str, episode: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
        """One image as stored (channels in stored order).

        Raises:
            ValueError: it cannot be read or decoded; names file, episode, field and step.
        """
        stored = self._read(field, episode, step)
        leaf = self.fields[field]
        if leaf.encoding:
            try:
                return decode_image(encoded(stored), leaf, self.image_scale)
            except ValueError as error:
                raise ValueError(f"{error} ({self.locate(episode)} '{field}' row {step})") from None
        return stored if stored.shape[-1] == 3 else np.repeat(stored, 3, axis=-1)

    def _checked(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field as the file has it."""
        values, steps = self._read(field, episode), int(self.lengths[episode])
        if not values.shape or len(values) != steps:
            raise ValueError(
                f"{self.locate(episode)}: '{field}' has shape {list(values.shape)}, the episode {steps} steps"
            )
        return values

    def texts(self, field: str, episode: int) -> list[str]:
        """A text field of all steps of an episode.

        Raises:
            ValueError: this episode has none (others have).
        """
        steps = int(self.lengths[episode])
        file, group = self._place(episode)
        if self._files.holds(file, f"{group}/{field}"):
            words = [as_text(word) for word in np.atleast_1d(self._read(field, episode))]
            return words * steps if len(words) == 1 else words
        text = self._files.attribute(file, group, field)
        if text is None and field == INSTRUCTION:
            problem = {key: self._files.attribute(file, group, key) for key in LIBERO_ATTRIBUTES}
            text = derived_instruction(problem)
        if text is None:
            raise ValueError(f"{self.locate(episode)} has neither a data set nor an attribute '{field}'")
        return [as_text(text)] * steps

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """Attributes of the episode and of all it lies in; "episode" and "file" name where it is stored."""
        name = self._index.episode_name(int(self._episodes[episode]))
        own = {"episode": name, "file": name.split("/", 1)[0]}
        return _Facts(own, partial(self._files.attributes, *self._place(episode)))

    @property
    def _is_everything(self) -> bool:
        return np.array_equal(self._episodes, np.arange(len(self._all_lengths)))

    def _chosen(self, split: str) -> np.ndarray:
        """Episode numbers of a split."""
        known = sorted(self.splits)
        if split not in known:
            raise unknown_split(self.path, split, known)
        chosen = self.splits[split]
        if not self._all_lengths[chosen].sum():
            raise ValueError(f"{self.path}: split '{split}' is empty; choose one of {', '.join(known)}")
        return chosen

    def _rows(self, episode: int) -> slice:
        number = self._episodes[episode]
        return slice(int(self._ends[number] - self._all_lengths[number]), int(self._ends[number]))

    def _place(self, episode: int) -> tuple[int, str]:
        """File number and group."""
        number = int(self._episodes[episode])
        return self._index.contents.file[number], self._index.contents.group[number]

    def locate(self, episode: int) -> str:
        """File and group of an episode, for messages."""
        file, group = self._place(episode)
        return f"{self._index.files[file]}: {group}"

    def _read(self, field: str, episode: int, rows: Any = ...) -> Any:
        file, group = self._place(episode)
        return self._files.read(file, f"{group}/{field}", rows)


class _Facts(Mapping[str, Any]):
    """Facts known at once, and attributes that are read only when asked for (a simulator's scene is long)."""

    def __init__(self, own: dict[str, Any], read: Callable[[], dict[str, Any]]):
        self._own, self._read = own, cache(read)

    def __getitem__(self, key: str) -> Any:
        return self._own[key] if key in self._own else _plain(self._read()[key])

    def __iter__(self) -> Iterator[str]:
        return iter({**self._read(), **self._own})

    def __len__(self) -> int:
        return len(list(iter(self)))


def _plain(value: Any) -> Any:
    """An attribute as a Python value; arrays as lists, an empty one as None."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, bytes):
        return as_text(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
