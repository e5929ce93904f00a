"""The writer of LeRobot v3.0 folders: episode by episode, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.lerobot.lerobot_columns import (
    ParquetParts,
    encode_png,
    image_column,
    lerobot_place,
    number_column,
    save_json,
    tasks_table,
)
from vla_adapt.episodes.lerobot.lerobot_episodes import METADATA_COLUMN
from vla_adapt.episodes.lerobot.lerobot_features import STANDARD, TASK, VIDEO, feature_of
from vla_adapt.episodes.lerobot.lerobot_statistics import (
    RunningStatistics,
    as_image_summary,
    image_numbers,
    sampled_steps,
    stats_json,
    summary,
)
from vla_adapt.episodes.lerobot.video_write import Mp4Files
from vla_adapt.episodes.mapping.entry import SIDECAR, DatasetEntry, Sidecar
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.folder_aside import FolderAside
from vla_adapt.episodes.storage.image_codec import check_shape, decode_image, image_size

ImageStorage = Literal["image", "video"]
Picture = np.ndarray | bytes

CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200
_EPISODES_AT_ONCE = 100
_PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_RGB = LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8")


@dataclass
class LeRobotEpisode:
    """One episode by LeRobot's feature names.

    Attributes:
        tasks: instruction of each of the T steps.
        numbers: feature -> [T, ...].
        images: feature -> T images, uint8 [h, w, 3] or encoded (JPEG, PNG).
        texts: feature -> T strings.
        facts: about the whole episode.
    """

    tasks: Sequence[str]
    numbers: Mapping[str, Shaped[np.ndarray, "_ ..."]]
    images: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class LeRobotWriter:
    """Context manager that writes one dataset; it appears at `folder` when the writer closes without error.

    Args:
        folder: the dataset.
        embodiment: the robot; its text travels with the data.
        entry: how the features map onto it.
        rate_hz: frames per second.
        images: "image": JPEG and PNG bytes are kept as they are, arrays become PNG (lossless). "video": mp4,
            smaller and lossy.
        split: of episodes that are added without one.
        overwrite: replace an existing dataset.
        lasting_name: by which held-out episodes are chosen (see `stable_name`); default the folder's name.
        fact_examples: a value of each fact that some episode lacks, for its type.

    Features, shapes and dtypes are taken from the first episode; every other episode must agree.
    """

    def __init__(
        self,
        folder: str | Path,
        embodiment: Embodiment,
        entry: DatasetEntry,
        rate_hz: float | int,
        images: ImageStorage = "video",
        split: str = "train",
        overwrite: bool = False,
        lasting_name: str | None = None,
        fact_examples: Mapping[str, Any] | None = None,
    ):
        self.path = Path(folder)
        self.embodiment, self.entry, self.split = embodiment, entry, split
        self.lasting_name = self.path.resolve().name if lasting_name is None else lasting_name
        self.rate_hz, self._fact_examples = float(rate_hz), fact_examples or {}
        self._splits: dict[str, int] = {}
        self._images: ImageStorage = images
        self._aside = FolderAside(self.path, overwrite)
        root = self._aside.path
        self._data = ParquetParts(root / "data", DATA_MB << 20, CHUNK_FILES)
        self._episodes = ParquetParts(root / "meta" / "episodes", DATA_MB << 20, CHUNK_FILES)
        self._videos: dict[str, Mp4Files] = {}
        self._leaves: dict[str, LeafSpec] = {}
        self._tasks: dict[str, int] = {}
        self._statistics: dict[str, RunningStatistics] = {}
        self._rows: list[dict[str, Any]] = []
        self._schema: pa.Schema | None = None
        self.episodes = self.steps = 0

    def __enter__(self) -> LeRobotWriter:
        return self

    def add(self, episode: LeRobotEpisode, split: str | None = None) -> None:
        """Append one episode, to `split` (default the writer's); one split's episodes follow one another.

        Raises:
            ValueError: lengths that disagree, features unlike the first episode's, an image that does not
                decode; names the episode and the feature. Or another split was begun meanwhile.
        """
        where = f"{self.path}: episode {self.episodes}"
        self._check(episode, where)
        self._begin(split or self.split, where)
        steps = len(episode.tasks)
        row: dict[str, Any] = {
            "episode_index": self.episodes,
            "tasks": list(dict.fromkeys(episode.tasks)),
            "length": steps,
            **_place_columns("data", self._data.next_file),
            "dataset_from_index": self.steps,
            "dataset_to_index": self.steps + steps,
            **{f"{METADATA_COLUMN}{key}": _listed(value) for key, value in episode.facts.items()},
        }
        numbers = {**episode.numbers, **self._standard(episode)}
        for name, values in numbers.items():
            self._count(row, name, values)
        columns = {name: number_column(values) for name, values in numbers.items()}
        columns |= {name: pa.array(list(texts), pa.string()) for name, texts in episode.texts.items()}
        for name, pictures in episode.images.items():
            try:
                columns |= self._add_images(row, name, pictures)
            except ValueError as error:
                raise ValueError(f"{where}: '{name}': {error}") from None
        self._data.write(pa.table({name: columns[name] for name in self._stored_names}))
        self._rows.append(row)
        self.episodes += 1
        self.steps += steps
        if len(self._rows) >= _EPISODES_AT_ONCE:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._aside.publish()
        finally:
            self._aside.drop()

    @property
    def _stored_names(self) -> list[str]:
        """Features that are columns of the data files."""
        return [name for name, leaf in self._leaves.items() if leaf.encoding != VIDEO]

    def _check(self, episode: LeRobotEpisode, where: str) -> None:
        steps = len(episode.tasks)
        if not steps:
            raise ValueError(f"{where}: no steps")
        parts = {**episode.numbers, **episode.images, **episode.texts}
        for name, values in parts.items():
            if "/" in name or name in (TASK, *STANDARD):
                raise ValueError(f"{where}: feature name '{name}' is not for LeRobot; rename it")
            if len(values) != steps:
                raise ValueError(f"{where}: '{name}' has {len(values)} steps, the task has {steps}")
        leaves = {name: _number_leaf(values, where, name) for name, values in episode.numbers.items()}
        leaves |= {name: self._image_leaf(pictures[0]) for name, pictures in episode.images.items()}
        leaves |= {name: LeafSpec(Kind.TEXT) for name in episode.texts}
        leaves |= STANDARD
        if not self._leaves:
            self._leaves = leaves
        for name in sorted(self._leaves.keys() | leaves.keys()):
            wanted, got = self._leaves.get(name), leaves.get(name)
            if wanted != got:
                raise ValueError(
                    f"{where}: '{name}' is {got or 'missing'}, in the first episode it is "
                    f"{wanted or 'missing'}; all episodes need the same features and shapes"
                )

    def _begin(self, split: str, where: str) -> None:
        """Count the episode about to be written to its split."""
        if split in self._splits and split != list(self._splits)[-1]:
            raise ValueError(
                f"{where}: split '{split}' was left for '{list(self._splits)[-1]}'; LeRobot's splits are "
                "stretches of episodes, add those of one after another"
            )
        self._splits[split] = self.episodes + 1

    def _image_leaf(self, picture: Picture) -> LeafSpec:
        leaf = LeafSpec(Kind.IMAGE, _pixels(picture).shape, "uint8")
        return replace(leaf, encoding=VIDEO) if self._images == "video" else leaf

    def _standard(self, episode: LeRobotEpisode) -> dict[str, np.ndarray]:
        steps = np.arange(len(episode.tasks))
        tasks = [self._tasks.setdefault(task, len(self._tasks)) for task in episode.tasks]
        return {
            "timestamp": (steps / self.rate_hz).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(steps), self.episodes),
            "index": steps + self.steps,
            "task_index": np.array(tasks, np.int64),
        }

    def _add_images(self, row: dict[str, Any], name: str, pictures: Sequence[Picture]) -> dict[str, pa.Array]:
        """Write the video, or make the column; adds to `row` where the video lies and the statistics."""
        sampled = sampled_steps(len(pictures))
        pixels = np.concatenate([image_numbers(_pixels(pictures[step])) for step in sampled])
        self._count(row, name, pixels, len(sampled))
        if self._images == "image":
            data = [picture if isinstance(picture, bytes) else encode_png(picture) for picture in pictures]
            for image in data:
                check_shape((*image_size(image), 3), self._leaves[name])
            return {name: image_column(data)}
        if name not in self._videos:
            folder = self._aside.path / "videos" / name
            self._videos[name] = Mp4Files(_file_in(folder, ".mp4"), self.rate_hz, VIDEO_MB << 20)
        stretch = self._videos[name].add(_pixels(picture) for picture in pictures)
        row |= _place_columns(f"videos/{name}", stretch.file)
        row |= {
            f"videos/{name}/from_timestamp": stretch.from_s,
            f"videos/{name}/to_timestamp": stretch.to_s,
        }
        return {}

    def _count(self, row: dict[str, Any], name: str, values: np.ndarray, count: int | None = None) -> None:
        """Add a feature of an episode to its own row's statistics and to the whole dataset's."""
        self._statistics.setdefault(name, RunningStatistics()).add(values, count)
        own = summary(values, count)
        if count is not None:
            own = as_image_summary(own)
        row |= {f"stats/{name}/{key}": value.tolist() for key, value in own.items()}

    def _flush(self) -> None:
        """Write the gathered rows of `meta/episodes`."""
        for row in self._rows:
            row |= _place_columns("meta/episodes", self._episodes.next_file)
        try:
            table = pa.Table.from_pylist(self._rows, schema=self._schema or self._row_schema())
        except (pa.ArrowException, TypeError) as error:
            first, last = self._rows[0]["episode_index"], self._rows[-1]["episode_index"]
            raise ValueError(
                f"{self.path}: facts of episodes {first}..{last} are not of the first one's kind ({error})"
            ) from None
        self._schema = table.schema
        self._episodes.write(table)
        self._rows.clear()

    def _row_schema(self) -> pa.Schema:
        """Of rows of `meta/episodes`, as the first ones have it; facts as their examples are."""
        schema = pa.Table.from_pylist(self._rows).schema
        for fact, value in self._fact_examples.items():
            place = schema.get_field_index(f"{METADATA_COLUMN}{fact}")
            if place >= 0:
                schema = schema.set(place, pa.field(schema.field(place).name, _fact_type(value)))
        return schema

    def _finish(self) -> None:
        if not self.episodes:
            raise ValueError(f"{self.path}: no episode was added, nothing to write")
        self._flush()
        for files in (*self._videos.values(), self._data, self._episodes):
            files.close()
        meta = self._aside.path / "meta"
        save_json(meta / "info.json", self._info())
        statistics = {name: running.summary() for name, running in self._statistics.items()}
        pictures = [name for name, leaf in self._leaves.items() if leaf.kind is Kind.IMAGE]
        statistics |= {name: as_image_summary(statistics[name]) for name in pictures}
        save_json(meta / "stats.json", stats_json(statistics))
        pq.write_table(tasks_table(list(self._tasks)), meta / "tasks.parquet")
        sidecar = Sidecar(name=self.lasting_name, entry=self.entry, embodiment_yaml=self.embodiment.to_text())
        (self._aside.path / SIDECAR).write_text(sidecar.model_dump_json(indent=2), encoding="utf-8")

    def _stretches(self) -> list[str]:
        """ "first:end" of each split."""
        ends = list(self._splits.values())
        return [f"{first}:{end}" for first, end in zip([0, *ends], ends, strict=False)]

    def _info(self) -> dict[str, Any]:
        rate = int(self.rate_hz) if self.rate_hz.is_integer() else self.rate_hz
        codecs = {name: files.codec for name, files in self._videos.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.embodiment.name,
            "total_episodes": self.episodes,
            "total_frames": self.steps,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": rate,
            "splits": dict(zip(self._splits, self._stretches(), strict=True)),
            "data_path": f"data/{_PATH}.parquet",
            "video_path": f"videos/{{video_key}}/{_PATH}.mp4" if codecs else None,
            "features": {
                name: feature_of(leaf, rate, codecs.get(name, "")) for name, leaf in self._leaves.items()
            },
        }


def _number_leaf(values: Shaped[np.ndarray, "T ..."], where: str, name: str) -> LeafSpec:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{where}: '{name}' has dtype {values.dtype}, wanted numbers or booleans")
    return LeafSpec(Kind.NUMBER, values.shape[1:], values.dtype.name)


def _listed(fact: Any) -> Any:
    """pyarrow takes arrays of more than one axis as lists only."""
    return fact.tolist() if isinstance(fact, np.ndarray) and fact.ndim > 1 else fact


def _fact_type(value: Any) -> pa.DataType:
    """Text, or numbers in as many lists as they have axes."""
    array = np.asarray(value)
    kind = pa.string() if array.dtype.kind == "U" else pa.from_numpy_dtype(array.dtype)
    for _ in range(array.ndim):
        kind = pa.list_(kind)
    return kind


def _pixels(picture: Picture) -> np.ndarray:
    return decode_image(picture, _RGB) if isinstance(picture, bytes) else picture


def _place_columns(stem: str, file: int) -> dict[str, int]:
    return {f"{stem}/chunk_index": file // CHUNK_FILES, f"{stem}/file_index": file % CHUNK_FILES}


def _file_in(folder: Path, suffix: str) -> Callable[[int], Path]:
    return lambda file: folder / lerobot_place(file, CHUNK_FILES, suffix)
