"""Write episodes as RLDS: TFRecord shards that `tfds.builder_from_directory` opens, without TensorFlow.

The dataset appears at `directory/name/version` in one rename, when the writer closes without an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mapping.entry import SIDECAR, DatasetEntry, Sidecar
from vla_adapt.episodes.rlds.example_proto import encode_example
from vla_adapt.episodes.rlds.tfrecord import frame
from vla_adapt.episodes.source import EpisodeData
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec, features_json
from vla_adapt.episodes.storage.folder_aside import FolderAside

JPEG_QUALITY = 95
_RESERVED = ("state",)


class RldsWriter:
    """Context manager that writes one RLDS dataset.

    Args:
        directory: tfds-style data folder; the dataset goes to `directory/name/version` (see `path`).
        name: dataset name (letters, digits, underscore).
        embodiment: the robot that was recorded; actions are checked against it.
        version: dataset version.
        description: a sentence for `dataset_info.json`.
        shard_bytes: a new shard is begun after this many bytes.
        overwrite: replace an existing dataset of this name and version.
        folder: call its folder in `directory` this; default `name`.
        lasting_name: by which held-out episodes are chosen, where that is not `name` (see `stable_name`).

    Field shapes are taken from the first episode; every other episode must agree.
    """

    def __init__(
        self,
        directory: str | Path,
        name: str,
        embodiment: Embodiment,
        version: str = "1.0.0",
        description: str = "",
        shard_bytes: int = 256 << 20,
        overwrite: bool = False,
        folder: str | None = None,
        lasting_name: str | None = None,
    ):
        if not name.isidentifier():
            raise ValueError(f"dataset name '{name}': use letters, digits and underscores, as tfds asks")
        self.path = Path(directory) / (folder or name) / version
        self.name, self.embodiment, self.version = name, embodiment, version
        self.description = description or f"Episodes of {embodiment.name} written by vla_adapt."
        self._shard_bytes, self._overwrite, self._lasting_name = shard_bytes, overwrite, lasting_name
        self._leaves: dict[str, LeafSpec] | None = None
        self._entry: DatasetEntry | None = None
        self._splits: dict[str, _SplitWriter] = {}
        self._aside: FolderAside | None = None

    def __enter__(self) -> RldsWriter:
        if self.path.exists() and not self._overwrite:
            raise ValueError(f"{self.path} exists; choose another name or version, or pass overwrite=True")
        self._aside = FolderAside(self.path, self._overwrite)
        return self

    def add(self, split: str, data: EpisodeData) -> None:
        """Append one episode to `split` ("train", "val", ...).

        Raises:
            ValueError: shapes that disagree, a non-finite action, an empty episode.
        """
        fields = _episode_fields(data, self.embodiment, f"{self.name}/{split}")
        self.add_fields(split, fields, _entry_of(data, self.embodiment))

    def add_fields(self, split: str, fields: Mapping[str, tuple[LeafSpec, Any]], entry: DatasetEntry) -> None:
        """Append one episode given as the fields of its record, not checked against the embodiment.

        Args:
            split: to append to.
            fields: "steps/..." or "episode_metadata/..." -> its spec and its values, one a step.
            entry: how they map onto the embodiment; the first episode's counts.

        Raises:
            ValueError: fields unlike the first episode's.
        """
        assert self._aside is not None, "use RldsWriter as a context manager"
        if not split.isidentifier():
            raise ValueError(f"split '{split}': use letters, digits and underscores")
        if self._leaves is None:
            self._leaves = {key: leaf for key, (leaf, _) in fields.items()}
            self._entry = entry
        self._check_like_first(fields, split)
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self._aside.path, self.name, split, self._shard_bytes)
        self._splits[split].write(encode_example({key: values for key, (_, values) in fields.items()}))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._aside is not None
        try:
            infos = [split.close() for split in self._splits.values()]
            if kind is None:
                self._describe(self._aside.path, infos)
                self._aside.publish()
        finally:
            self._aside.drop()
            self._aside = None

    def _check_like_first(self, fields: Mapping[str, tuple[LeafSpec, Any]], split: str) -> None:
        assert self._leaves is not None
        for key in sorted(self._leaves.keys() | fields.keys()):
            wanted, got = self._leaves.get(key), fields[key][0] if key in fields else None
            if wanted != got:
                raise ValueError(
                    f"{self.name}/{split}: field '{key}' is {got or 'missing'} in this episode but "
                    f"{wanted or 'missing'} in the first one; all episodes need the same fields and shapes"
                )

    def _describe(self, folder: Path, splits: list[dict[str, Any]]) -> None:
        """Write the files that say what the shards hold."""
        if self._leaves is None or self._entry is None:
            raise ValueError(f"{self.path}: no episode was added, nothing to write")
        info = {
            "description": self.description,
            "fileFormat": "tfrecord",
            "moduleName": "vla_adapt.episodes.rlds.write",
            "name": self.name,
            "splits": splits,
            "version": self.version,
        }
        (folder / "features.json").write_text(
            json.dumps(features_json(self._leaves), indent=4, sort_keys=True)
        )
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2, sort_keys=True))
        sidecar = Sidecar(
            name=self._lasting_name, entry=self._entry, embodiment_yaml=self.embodiment.to_text()
        )
        (folder / SIDECAR).write_text(sidecar.model_dump_json(indent=2))


class _SplitWriter:
    """Shards of one split; their `-of-N` names are known only when the split is closed."""

    def __init__(self, folder: Path, name: str, split: str, shard_bytes: int):
        self._folder, self._stem, self._split = folder, f"{name}-{split}.tfrecord", split
        self._shard_bytes = shard_bytes
        self._file: BinaryIO | None = None
        self._lengths: list[int] = []
        self._payload_bytes = 0

    def write(self, payload: bytes) -> None:
        if self._file is None or self._file.tell() >= self._shard_bytes:
            self._close_file()
            self._file = (self._folder / f"{self._stem}.part{len(self._lengths)}").open("wb")
            self._lengths.append(0)
        self._file.write(frame(payload))
        self._lengths[-1] += 1
        self._payload_bytes += len(payload)

    def close(self) -> dict[str, Any]:
        """Give the shards their final names; returns the split's entry of dataset_info.json."""
        self._close_file()
        count = len(self._lengths)
        for i in range(count):
            part = self._folder / f"{self._stem}.part{i}"
            part.rename(self._folder / f"{self._stem}-{i:05d}-of-{count:05d}")
        return {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": self._split,
            "numBytes": str(self._payload_bytes),
            "shardLengths": [str(length) for length in self._lengths],
        }

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _entry_of(data: EpisodeData, embodiment: Embodiment) -> DatasetEntry:
    return DatasetEntry(
        embodiment=embodiment.name,
        cameras={camera: f"observation/{camera}" for camera in data.images},
        action=("action",),
        state=() if data.state is None else ("observation/state",),
        extra={key: f"observation/{key}" for key in data.extra},
    )


def _episode_fields(data: EpisodeData, embodiment: Embodiment, where: str) -> dict[str, tuple[LeafSpec, Any]]:
    """Every field of one record: its spec and its flat values."""
    steps = len(data.action)
    if steps == 0:
        raise ValueError(f"{where}: episode without steps")
    embodiment.check_action(data.action)
    if data.state is not None:
        embodiment.check_proprio(data.state)
    observation: dict[str, tuple[LeafSpec, Any]] = {}
    clash = [key for key in (*data.images, *data.extra) if key in _RESERVED] + sorted(
        set(data.images) & set(data.extra)
    )
    if clash:
        raise ValueError(f"{where}: observation field '{clash[0]}' is used twice; rename the camera or extra")
    for camera, images in data.images.items():
        observation[camera] = _image_field(images, f"{where}: camera '{camera}'")
    if data.state is not None:
        observation["state"] = _array_field(np.asarray(data.state, np.float32))
    for key, values in data.extra.items():
        observation[key] = _array_field(np.asarray(values))
    last = np.arange(steps) == steps - 1
    success = bool(data.metadata.get("success", True))
    fields: dict[str, tuple[LeafSpec, Any]] = {
        "action": _array_field(np.asarray(data.action, np.float32)),
        "language_instruction": (LeafSpec(Kind.TEXT), [text.encode() for text in data.step_instructions]),
        "is_first": _array_field(np.arange(steps) == 0),
        "is_last": _array_field(last),
        "is_terminal": _array_field(last),
        "reward": _array_field((last & success).astype(np.float32)),
        "discount": _array_field(np.ones(steps, np.float32)),
        **{f"observation/{key}": value for key, value in observation.items()},
    }
    for key, (leaf, values) in fields.items():
        count = len(values) if leaf.kind is not Kind.NUMBER else values.shape[0]
        if count != steps:
            raise ValueError(f"{where}: '{key}' has {count} steps, the action has {steps}")
    metadata = {
        f"episode_metadata/{key}": _metadata_field(value, f"{where}: metadata '{key}'")
        for key, value in data.metadata.items()
    }
    return {**{f"steps/{key}": value for key, value in fields.items()}, **metadata}


def _image_field(images: Any, where: str) -> tuple[LeafSpec, list[bytes]]:
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{where}: wanted uint8 [T, h, w, 3], got {images.dtype} {list(images.shape)}")
        encoded = [
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
            )
            for image in images
        ]
        return LeafSpec(Kind.IMAGE, images.shape[1:], "uint8", "jpeg"), encoded
    encoded = [bytes(image) for image in images]
    headers = [simplejpeg.decode_jpeg_header(image) for image in encoded]
    sizes = {(int(height), int(width)) for height, width, *_ in headers}
    if len(sizes) != 1:
        raise ValueError(f"{where}: JPEGs of {len(sizes)} sizes in one episode, wanted one")
    return LeafSpec(Kind.IMAGE, (*sizes.pop(), 3), "uint8", "jpeg"), encoded


def _array_field(values: np.ndarray) -> tuple[LeafSpec, np.ndarray]:
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"cannot store an array of dtype {values.dtype}; wanted numbers or booleans")
    return LeafSpec(Kind.NUMBER, values.shape[1:], values.dtype.name), values


def _metadata_field(value: Any, where: str) -> tuple[LeafSpec, Any]:
    if isinstance(value, str):
        return LeafSpec(Kind.TEXT), [value.encode()]
    if isinstance(value, bool | np.bool_):
        return LeafSpec(Kind.NUMBER, (), "bool"), np.array([value])
    if isinstance(value, int | np.integer):
        return LeafSpec(Kind.NUMBER, (), "int64"), np.array([value], np.int64)
    if isinstance(value, float | np.floating):
        return LeafSpec(Kind.NUMBER, (), "float32"), np.array([value], np.float32)
    raise ValueError(f"{where}: wanted str, bool, int or float, got {type(value).__name__}")
