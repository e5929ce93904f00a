"""LeRobot datasets, v2.1 and v3.0, as stored episodes: parquet for numbers and images, mp4 for videos."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vla_adapt.episodes.lerobot.lerobot_features import CAMERA, STANDARD, TASK, VIDEO
from vla_adapt.episodes.lerobot.lerobot_image_crc import image_crcs
from vla_adapt.episodes.lerobot.lerobot_index import LeRobotIndex, open_lerobot_index
from vla_adapt.episodes.lerobot.lerobot_meta import LeRobotFolder
from vla_adapt.episodes.lerobot.parquet_columns import RowGroups, numbers
from vla_adapt.episodes.lerobot.video import VideoFrames
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.rlds.tfrecord import crc32c
from vla_adapt.episodes.storage.damage import OnError, warn_skipped
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.image_codec import decode_image
from vla_adapt.episodes.storage.text_runs import Runs, every_step, runs_of_numbers

LEROBOT_REMEDY = (
    "name its robot (embodiment=...) if its fields have LeRobot's usual names (action, observation.state, "
    "observation.images.*), else pass entry=DatasetEntry(...) or a YAML file of one"
)
_RGB = LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8")


class LeRobotStore:
    """One split of a LeRobot dataset as `StoredEpisodes`; fields bear LeRobot's names.

    "task" is the instruction of each step. Standard columns that the files lack (timestamp, frame_index,
    ...) are derived; other declared features without a column are left out of `fields`.

    Args:
        folder: the dataset.
        split: split name, part of the episode ids.
        index: its numbers; episodes of files it calls damaged are left out, told by a warning.
        video: reader of its mp4 files.
        on_error: "skip": leave out episodes whose mp4 file is missing, too.
        image_scale: decode JPEGs at a smaller scale, see `image_codec.decode_image`.

    Attributes:
        rate_hz: frames per second.
        skipped: what was left out: file and reason of each damage.
        lost: how many episodes by it.
        ordinals: number of each episode among all of the split.

    Raises:
        ValueError: unknown or empty split, or nothing of it is left.
    """

    def __init__(
        self,
        folder: LeRobotFolder,
        split: str,
        index: LeRobotIndex,
        video: VideoFrames | None = None,
        on_error: OnError = "error",
        image_scale: int | None = None,
    ):
        self.name, self.split, self.path = folder.name, split, folder.path
        self._folder, self._index, self.image_scale = folder, index, image_scale
        self._crcs: Mapping[str, np.ndarray] = {}
        self.rate_hz = folder.rate_hz
        everything = folder.split(split)
        lost, self.skipped = _lost(folder, index, everything, on_error)
        self.lost = len(lost)
        self._episodes = np.setdiff1d(np.arange(everything.start, everything.stop), lost)
        self.ordinals = self._episodes - everything.start
        self._lengths = folder.lengths[self._episodes]
        self._first = np.cumsum(self._lengths) - self._lengths
        self._ends = np.cumsum(folder.lengths)
        self._video, self._parquet = video or VideoFrames(), RowGroups()
        derived = {*STANDARD, TASK, *folder.videos}
        self.fields = {
            name: leaf for name, leaf in folder.leaves.items() if name in index.columns or name in derived
        }
        if self.skipped:
            if not self.lengths.sum():
                raise ValueError(f"{self.path}: split '{split}' has no readable episode: {self.skipped[0]}")
            warn_skipped(f"{self.name}/{split}", self.skipped, len(lost), len(self._episodes))

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode."""
        return self._lengths

    def cameras_of(self, video: bool) -> list[str]:
        """Image fields that are stored as videos, or those that are stored image by image."""
        images = [name for name, leaf in self.fields.items() if leaf.kind is Kind.IMAGE]
        return [name for name in images if (self.fields[name].encoding == VIDEO) == video]

    def verify_images(self, cache_dir: str | Path | None = None) -> None:
        """From now on check the CRC of every image (not of video frames) when it is read.

        They are noted now, which reads all images, unless they were before.

        Raises:
            ValueError: an image is missing, or there is nowhere to keep the CRCs.
        """
        state, fields = f"{self._index.name} {self.split}", self.cameras_of(video=False)
        self._crcs = image_crcs(self.path, state, fields, self.lengths, self.encoded_image, cache_dir)

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of an episode, [T, ...], from the index or, if wide, the parquet file."""
        number = int(self._episodes[episode])
        rows = self._rows(number)
        indexed = self._index.arrays.get(field)
        if indexed is not None:
            return np.array(indexed[rows])
        if field in STANDARD:
            return self._derived(field, number)
        return self._stored(field, number)

    def exact_dtype(self, field: str) -> np.dtype:
        """Of a number field as declared; `numbers` gives 64-bit floats as 32-bit ones."""
        return np.dtype(self.fields[field].dtype)

    def exact_numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """`numbers` in `exact_dtype`."""
        if self.fields[field].dtype != "float64":
            return self.numbers(field, episode)
        return self._stored(field, int(self._episodes[episode]), exact=True)

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        """A number field of all steps of all episodes; a memory map unless the field is wide."""
        indexed = self._index.arrays.get(field)
        if indexed is not None and np.ptp(self._episodes) == len(self._episodes) - 1:
            first, last = (self._rows(int(self._episodes[i])) for i in (0, -1))
            return indexed[first.start : last.stop]
        return np.concatenate([self.numbers(field, i) for i in range(len(self._episodes))])

    def image(self, field: str, episode: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image or video frame.

        Raises:
            ValueError: the file is missing or damaged, or the video has no frame at that time; names file,
                episode and step.
        """
        if self.fields[field].encoding == VIDEO:
            number = int(self._episodes[episode])
            files, starts = self._folder.videos[field]
            time_s = float(starts[number]) + self._timestamp(number, step)
            try:
                return self._video.frame(self.path / files[number], time_s, self._folder.rate_hz)
            except ValueError as error:
                raise ValueError(f"{error} (episode {number} step {step})") from None
        data = self.encoded_image(field, episode, step)
        assert data is not None
        if field in self._crcs and crc32c(data) != int(self._crcs[field][self._first[episode] + step]):
            where = self._where(field, episode, step)
            raise ValueError(f"CRC of the image is wrong, the file has changed ({where}); copy it again")
        try:
            return decode_image(data, _RGB, self.image_scale)
        except ValueError as error:
            raise ValueError(f"{error} ({self._where(field, episode, step)})") from None

    def encoded_image(self, field: str, episode: int, step: int) -> bytes | None:
        """The stored bytes (JPEG, PNG) of one image; None for video frames.

        Raises:
            ValueError: the file changed or is damaged, or holds no image there.
        """
        if self.fields[field].encoding == VIDEO:
            return None
        file, first = self._place(int(self._episodes[episode]))
        value = self._parquet.value(file, field, first + step)
        data = value.get("bytes") if isinstance(value, dict) else None
        if data is None and isinstance(value, dict) and value.get("path"):
            data = _read_image_file(self.path / value["path"])
        if not data:
            raise ValueError(f"no image embedded; copy it again ({self._where(field, episode, step)})")
        return data

    def texts(self, field: str, episode: int) -> Sequence[str]:
        """A text field of all steps of an episode; "task" is the instruction."""
        return every_step(self.text_runs(field, episode), int(self._lengths[episode]))

    def text_runs(self, field: str, episode: int) -> Runs:
        """(first step, text) of each stretch of steps of an episode with one text."""
        number = int(self._episodes[episode])
        numbers = self._index.arrays.get(field)
        if numbers is not None:
            return runs_of_numbers(numbers[self._rows(number)], self._index.strings[field].__getitem__)
        return self._task_runs(number)

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """episode_index, length, tasks, and what else the dataset records of an episode."""
        return self._folder.episodes.facts(int(self._episodes[episode]))

    @property
    def fact_leaves(self) -> Mapping[str, LeafSpec]:
        """What is known of the kinds of `metadata`."""
        return self._folder.episodes.leaves

    def _stored(self, field: str, number: int, exact: bool = False) -> Shaped[np.ndarray, "T ..."]:
        """A number field from the parquet file."""
        leaf, steps = self.fields[field], int(self._folder.lengths[number])
        if not steps:
            return np.zeros((0, *leaf.shape), leaf.dtype if exact or leaf.dtype != "float64" else "float32")
        file, first = self._place(number)
        column = self._parquet.slice(file, field, first, steps)
        return numbers(column, leaf, f"{file}: column '{field}' of episode {number}", exact)

    def _task_runs(self, number: int) -> Runs:
        """Instructions by the steps' task_index or, without that column, the episode's only task."""
        indices = self._index.arrays.get("task_index")
        if indices is not None:
            return runs_of_numbers(indices[self._rows(number)], partial(self._task, number))
        tasks = self._folder.episodes.tasks(number)
        if len(tasks) != 1:
            raise ValueError(
                f"{self.path}: episode {number} has {len(tasks)} tasks and no column 'task_index' to "
                "tell its steps apart; repair the dataset with lerobot"
            )
        return ((0, tasks[0]),)

    def _task(self, number: int, index: int) -> str:
        if index not in self._folder.tasks:
            step = int(np.argmax(self._index.arrays["task_index"][self._rows(number)] == index))
            raise ValueError(f"{self.path}: episode {number} step {step}: no task {index} in meta/tasks")
        return self._folder.tasks[index]

    def _derived(self, field: str, number: int) -> Shaped[np.ndarray, " T"]:
        """A standard column that the files lack."""
        rows = self._rows(number)
        steps = np.arange(rows.stop - rows.start)
        if field == "timestamp":
            return (steps / self._folder.rate_hz).astype(np.float32)
        if field == "task_index":
            numbers_of = {text: i for i, text in self._folder.tasks.items()}
            texts = every_step(self._task_runs(number), len(steps))
            return np.array([numbers_of.get(text, -1) for text in texts], np.int64)
        starts = {"frame_index": 0, "index": rows.start}
        return np.full(len(steps), number) if field == "episode_index" else steps + starts[field]

    def _timestamp(self, number: int, step: int) -> float:
        stored = self._index.arrays.get("timestamp")
        if stored is None:
            return step / self._folder.rate_hz
        return float(stored[self._rows(number).start + step])

    def _rows(self, number: int) -> slice:
        """Rows of the whole dataset that are episode `number`."""
        end = int(self._ends[number])
        return slice(end - int(self._folder.lengths[number]), end)

    def _place(self, number: int) -> tuple[Path, int]:
        """The parquet file of episode `number`, and its first row there."""
        file = self._folder.data_files[int(self._folder.data_file[number])]
        return file, int(self._folder.first_row[number])

    def locate(self, episode: int) -> str:
        """File and first row of an episode, for messages."""
        file, first = self._place(int(self._episodes[episode]))
        return f"{file} from row {first} on"

    def _where(self, field: str, episode: int, step: int) -> str:
        file, first = self._place(int(self._episodes[episode]))
        return f"{file} column '{field}' row {first + step}"


def open_lerobot(
    path: Path,
    split: str = "train",
    cache_dir: str | Path | None = None,
    on_error: OnError = "error",
    verify_images: bool = False,
    image_scale: int | None = None,
) -> LeRobotStore:
    """The LeRobot dataset in folder `path`.

    `verify_images` and `image_scale` are for images stored one by one; a warning names cameras that are not.

    Raises:
        ValueError: as `LeRobotFolder.read`, the index, the store and `verify_images` say.
    """
    folder = LeRobotFolder.read(path)
    folder.split(split)
    index = open_lerobot_index(folder, cache_dir, on_error)
    store = LeRobotStore(folder, split, index, None, on_error, image_scale)
    videos = ", ".join(store.cameras_of(video=True))
    for option, given in (("verify_images", verify_images), ("image_scale", image_scale is not None)):
        if given and videos:
            warnings.warn(f"{path}: {option} has no effect on videos ({videos})", stacklevel=3)
    if verify_images:
        store.verify_images(cache_dir)
    return store


def _lost(
    folder: LeRobotFolder, index: LeRobotIndex, split: range, on_error: OnError
) -> tuple[list[int], list[str]]:
    """Episodes of a split that cannot be read, and why: damaged parquet files, missing mp4 files."""
    episodes = np.arange(split.start, split.stop)
    lost: dict[int, None] = {}
    reasons: list[str] = []
    for number, text in index.damaged:
        inside = episodes[folder.data_file[episodes] == number].tolist()
        lost.update(dict.fromkeys(inside))
        reasons += [text] if inside else []
    if on_error == "skip":
        files: dict[str, list[int]] = {}
        for names, _ in folder.videos.values():
            for episode in episodes.tolist():
                files.setdefault(names[episode], []).append(episode)
        for name, inside in files.items():
            if not (folder.path / name).is_file():
                lost.update(dict.fromkeys(inside))
                reasons.append(f"{folder.path / name}: video file is missing; copy the dataset again")
    return list(lost), reasons


def conventional_entry(store: LeRobotStore, embodiment: str) -> DatasetEntry:
    """The entry of a dataset that keeps to LeRobot's usual names, for a robot the caller names.

    Action is "action", state "observation.state" (if there), the instruction "task", and every
    "observation.images.NAME" a camera NAME; the only or first one is also "primary" when none is called so.
    """
    fields = [name for name, leaf in store.fields.items() if leaf.kind is Kind.IMAGE]
    cameras = {name.removeprefix(CAMERA): name for name in fields if name.startswith(CAMERA)}
    if cameras and "primary" not in cameras:
        cameras["primary"] = next(iter(cameras.values()))
    state = "observation.state"
    return DatasetEntry(
        embodiment=embodiment,
        cameras=cameras,
        action=("action",),
        state=(state,) if state in store.fields else (),
        instruction=TASK,
        rate_hz=store.rate_hz,
    )


def _read_image_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        raise ValueError(f"{file}: image file is missing; copy the dataset again") from None
