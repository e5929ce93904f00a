"""LeRobot datasets, v2.1 and v3.0, as stored episodes: parquet for numbers and images, mp4 for videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from vla_adapt.episodes.entry import DatasetEntry
from vla_adapt.episodes.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.image_codec import decode_image
from vla_adapt.episodes.lerobot_features import CAMERA, STANDARD, TASK, VIDEO
from vla_adapt.episodes.lerobot_index import LeRobotIndex, open_lerobot_index
from vla_adapt.episodes.lerobot_meta import LeRobotFolder
from vla_adapt.episodes.parquet_columns import RowGroups, numbers
from vla_adapt.episodes.video import VideoFrames

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
        index: its numbers.
        video: reader of its mp4 files.

    Attributes:
        rate_hz: frames per second.

    Raises:
        ValueError: unknown or empty split.
    """

    def __init__(
        self, folder: LeRobotFolder, split: str, index: LeRobotIndex, video: VideoFrames | None = None
    ):
        self.name, self.split, self.path = folder.name, split, folder.path
        self._folder, self._index = folder, index
        self.rate_hz = folder.rate_hz
        self._episodes = folder.split(split)
        self._ends = np.cumsum(folder.lengths)
        self._video, self._parquet = video or VideoFrames(), RowGroups()
        derived = {*STANDARD, TASK, *folder.videos}
        self.fields = {
            name: leaf for name, leaf in folder.leaves.items() if name in index.columns or name in derived
        }

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each episode."""
        return self._folder.lengths[self._episodes.start : self._episodes.stop]

    def numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of an episode, [T, ...], from the index or, if wide, the parquet file."""
        number = self._episodes[episode]
        rows = self._rows(number)
        indexed = self._index.arrays.get(field)
        if indexed is not None:
            return np.array(indexed[rows])
        if field in STANDARD:
            return self._derived(field, number)
        file, first = self._place(number)
        column = self._parquet.slice(file, field, first, rows.stop - rows.start)
        return numbers(column, self.fields[field], f"{file}: column '{field}' of episode {number}")

    def column(self, field: str) -> Shaped[np.ndarray, "N ..."]:
        """A number field of all steps of all episodes; a memory map unless the field is wide."""
        indexed = self._index.arrays.get(field)
        if indexed is not None:
            start = self._rows(self._episodes.start).start
            return indexed[start : start + int(self.lengths.sum())]
        return np.concatenate([self.numbers(field, i) for i in range(len(self._episodes))])

    def image(self, field: str, episode: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one image or video frame.

        Raises:
            ValueError: the file is missing or damaged, or the video has no frame at that time; names file,
                episode and step.
        """
        if self.fields[field].encoding == VIDEO:
            number = self._episodes[episode]
            files, starts = self._folder.videos[field]
            time_s = float(starts[number]) + self._timestamp(number, step)
            try:
                return self._video.frame(self.path / files[number], time_s, self._folder.rate_hz)
            except ValueError as error:
                raise ValueError(f"{error} (episode {number} step {step})") from None
        data = self.encoded_image(field, episode, step)
        assert data is not None
        try:
            return decode_image(data, _RGB)
        except ValueError as error:
            raise ValueError(f"{error} ({self._where(field, episode, step)})") from None

    def encoded_image(self, field: str, episode: int, step: int) -> bytes | None:
        """The stored bytes (JPEG, PNG) of one image; None for video frames.

        Raises:
            ValueError: the file changed or is damaged, or holds no image there.
        """
        if self.fields[field].encoding == VIDEO:
            return None
        file, first = self._place(self._episodes[episode])
        value = self._parquet.value(file, field, first + step)
        data = value.get("bytes") if isinstance(value, dict) else None
        if data is None and isinstance(value, dict) and value.get("path"):
            data = _read_image_file(self.path / value["path"])
        if not data:
            raise ValueError(f"no image embedded; copy it again ({self._where(field, episode, step)})")
        return data

    def texts(self, field: str, episode: int) -> Sequence[str]:
        """A text field of all steps of an episode; "task" is the instruction."""
        number = self._episodes[episode]
        rows = self._rows(number)
        if field in self._index.arrays:
            table = self._index.strings[field]
            return [table[i] for i in self._index.arrays[field][rows]]
        return self._tasks(number, rows)

    def metadata(self, episode: int) -> Mapping[str, Any]:
        """episode_index, length, tasks, and what else the dataset records of an episode."""
        return self._folder.episodes.facts(self._episodes[episode])

    def _tasks(self, number: int, rows: slice) -> list[str]:
        """Instruction of each step, by its task_index or, without that column, the episode's only task."""
        indices = self._index.arrays.get("task_index")
        if indices is None:
            tasks = self._folder.episodes.tasks(number)
            if len(tasks) != 1:
                raise ValueError(
                    f"{self.path}: episode {number} has {len(tasks)} tasks and no column 'task_index' to "
                    "tell its steps apart; repair the dataset with lerobot"
                )
            return tasks * (rows.stop - rows.start)
        texts = []
        for step, index in enumerate(indices[rows].tolist()):
            if index not in self._folder.tasks:
                raise ValueError(f"{self.path}: episode {number} step {step}: no task {index} in meta/tasks")
            texts.append(self._folder.tasks[index])
        return texts

    def _derived(self, field: str, number: int) -> Shaped[np.ndarray, " T"]:
        """A standard column that the files lack."""
        rows = self._rows(number)
        steps = np.arange(rows.stop - rows.start)
        if field == "timestamp":
            return (steps / self._folder.rate_hz).astype(np.float32)
        if field == "task_index":
            numbers_of = {text: i for i, text in self._folder.tasks.items()}
            return np.array([numbers_of.get(text, -1) for text in self._tasks(number, rows)], np.int64)
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

    def _where(self, field: str, episode: int, step: int) -> str:
        file, first = self._place(self._episodes[episode])
        return f"{file} column '{field}' row {first + step}"


def open_lerobot(path: Path, split: str = "train", cache_dir: str | Path | None = None) -> LeRobotStore:
    """The LeRobot dataset in folder `path`; raises ValueError as `LeRobotFolder.read` and its index do."""
    folder = LeRobotFolder.read(path)
    folder.split(split)
    return LeRobotStore(folder, split, open_lerobot_index(folder, cache_dir))


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
