"""Which files make up an RLDS split, read from the folder's `dataset_info.json` and `features.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from vla_adapt.episodes.rlds.remote_folder import RemoteFolder
from vla_adapt.episodes.rlds.version_folder import find_version_folder
from vla_adapt.episodes.storage.byte_source import ShardFile, is_url
from vla_adapt.episodes.storage.feature_spec import LeafSpec, parse_features
from vla_adapt.episodes.storage.split_names import unknown_split
from vla_adapt.suggest import validate_model

DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class _Split(BaseModel):
    """What is read of one of `splits` in `dataset_info.json`."""

    name: str
    shardLengths: list[NonNegativeInt] = []
    filepathTemplate: str | None = None
    numBytes: NonNegativeInt | None = None


class _Info(BaseModel):
    """What is read of `dataset_info.json`; tfds writes whole numbers as text, which this takes too."""

    name: str = ""
    fileFormat: str = "tfrecord"
    splits: list[_Split] = []


@dataclass(frozen=True)
class RldsFolder:
    """A dataset version folder.

    Attributes:
        path: local folder of its JSON files; of a remote dataset, copies of them in the cache.
        name: of the dataset.
        leaves: its schema.
        splits: split -> [(shard file relative to the folder, number of episodes)].
        payload_bytes: split -> bytes of its records, where the dataset says.
        remote: where the shards are, when not in `path`.
    """

    path: Path
    name: str
    leaves: dict[str, LeafSpec]
    splits: dict[str, list[tuple[str, int]]]
    payload_bytes: dict[str, int] = field(default_factory=dict)
    remote: RemoteFolder | None = None

    @classmethod
    def open(cls, path: str | Path, cache_dir: str | Path | None = None) -> RldsFolder:
        """Find and read a version folder, local or on any fsspec filesystem ("gs://bucket/dataset").

        Args:
            path: the version folder, or one with a single version folder below it.
            cache_dir: where copies of a remote folder's JSON files go; default: the user's cache.

        Raises:
            ValueError: none or several found, or not readable.
        """
        if not is_url(path):
            return cls.read(find_version_folder(Path(path)))
        remote = RemoteFolder.find(str(path), cache_dir)
        return cls.read(remote.mirror, remote)

    @classmethod
    def read(cls, path: Path, remote: RemoteFolder | None = None) -> RldsFolder:
        """Read the two JSON files of a version folder.

        Raises:
            ValueError: a file is missing or damaged, or the format is not TFRecord.
        """
        features = _json(path / "features.json")
        info = validate_model(_Info, _json(path / "dataset_info.json"), str(path / "dataset_info.json"))
        if info.fileFormat != "tfrecord":
            raise ValueError(
                f"{path}: file format '{info.fileFormat}', wanted tfrecord; rewrite it with tfds"
            )
        name = info.name or path.parent.name
        splits = {split.name: split.model_dump(exclude_none=True) for split in info.splits}
        files = {key: shard_names(name, split, path) for key, split in splits.items()}
        sizes = {split.name: split.numBytes for split in info.splits if split.numBytes is not None}
        try:
            leaves = parse_features(features)
        except ValueError as error:
            raise ValueError(f"{path}/{error}; copy the dataset again") from None
        return cls(path, name, leaves, files, sizes, remote)

    @property
    def origin(self) -> str:
        """The folder as a user knows it: its path or URL."""
        return self.remote.url if self.remote else str(self.path)

    def shards(self, split: str) -> list[ShardFile]:
        """Shard files of `split` as they are now, missing ones with size None.

        Raises:
            ValueError: unknown or empty split.
        """
        if split not in self.splits:
            raise unknown_split(self.origin, split, self.splits)
        shards = self.splits[split]
        if not sum(count for _, count in shards):
            raise ValueError(
                f"{self.origin}: split '{split}' is empty; choose one of {', '.join(self.splits)}"
            )
        if self.remote:
            return [self.remote.shard(name, count) for name, count in shards]
        return [_local_shard(self.path / name, count) for name, count in shards]


def check_complete(shards: Sequence[ShardFile]) -> None:
    """Refuse missing shards.

    Raises:
        ValueError: names the first one.
    """
    for shard in shards:
        if shard.size is None:
            raise ValueError(f"{shard.location}: shard is missing; copy the dataset again")


def shard_names(dataset: str, split: dict[str, Any], where: Path) -> list[tuple[str, int]]:
    """Files of a split, relative to the folder, with their episode counts, as dataset_info.json has them.

    Raises:
        ValueError: a file name template with a part that is not known.
    """
    template = split.get("filepathTemplate") or DEFAULT_TEMPLATE
    counts = [int(count) for count in split.get("shardLengths", [])]
    digits = max(5, len(str(len(counts))))
    of = f"{len(counts):0{digits}d}"
    names = []
    for i, count in enumerate(counts):
        index = f"{i:0{digits}d}"
        parts = {
            "DATASET": dataset,
            "SPLIT": split["name"],
            "FILEFORMAT": "tfrecord",
            "SHARD_X_OF_Y": f"{index}-of-{of}",
            "SHARD_INDEX": index,
            "NUM_SHARDS": of,
        }
        try:
            names.append((template.format(**parts), count))
        except (KeyError, ValueError, IndexError):
            known = ", ".join(parts)
            raise ValueError(f"{where}: file name template '{template}': wanted parts of {known}") from None
    return names


def _local_shard(path: Path, count: int) -> ShardFile:
    if not path.is_file():
        return ShardFile(str(path), count, None, "", str(path))
    state = path.stat()
    return ShardFile(str(path), count, state.st_size, str(state.st_mtime_ns), str(path))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; an RLDS version folder holds features.json and dataset_info.json")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy the dataset again") from None
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path}: holds a {type(tree).__name__}, wanted a JSON object; copy the dataset again"
        )
    return tree
