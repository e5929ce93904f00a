"""Which files make up an RLDS split, read from the folder's `dataset_info.json` and `features.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_adapt.episodes.feature_spec import LeafSpec, parse_features
from vla_adapt.suggest import did_you_mean


@dataclass(frozen=True)
class RldsFolder:
    """A dataset version folder: its name, schema and splits (split -> [(shard file, number of episodes)])."""

    path: Path
    name: str
    leaves: dict[str, LeafSpec]
    splits: dict[str, list[tuple[Path, int]]]

    @classmethod
    def read(cls, path: Path) -> RldsFolder:
        """Read the two JSON files of a version folder.

        Raises:
            ValueError: a file is missing or damaged, or the format is not TFRecord.
        """
        features, info = _json(path / "features.json"), _json(path / "dataset_info.json")
        file_format = info.get("fileFormat", "tfrecord")
        if file_format != "tfrecord":
            raise ValueError(f"{path}: file format '{file_format}', wanted tfrecord; rewrite it with tfds")
        name = info.get("name") or path.parent.name
        splits = {split["name"]: _shards(path, name, split) for split in info.get("splits", [])}
        return cls(path, name, parse_features(features), splits)

    def shards(self, split: str) -> list[tuple[Path, int]]:
        """Shard files of `split` with their episode counts.

        Raises:
            ValueError: unknown or empty split, or a shard file that is not there.
        """
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split '{split}'; {did_you_mean(split, self.splits)}")
        shards = self.splits[split]
        if not sum(count for _, count in shards):
            raise ValueError(f"{self.path}: split '{split}' is empty; choose one of {', '.join(self.splits)}")
        for file, _ in shards:
            if not file.is_file():
                raise ValueError(f"{file}: shard is missing; copy the dataset again")
        return shards


def find_version_folder(path: Path) -> Path:
    """The folder holding `features.json`: `path`, its only version, or its only dataset's only version.

    Raises:
        ValueError: none found, or several to choose from.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such dataset folder")
    for pattern in ("features.json", "*/features.json", "*/*/features.json"):
        found = sorted(p.parent for p in path.glob(pattern) if not p.parent.name.startswith("."))
        if len(found) > 1:
            raise ValueError(f"{path}: holds several datasets; name one of {', '.join(map(str, found))}")
        if found:
            return found[0]
    raise ValueError(f"{path}: no features.json here or below; wanted an RLDS dataset as tfds writes it")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; an RLDS version folder holds features.json and dataset_info.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy the dataset again") from None


def _shards(path: Path, name: str, split: dict[str, Any]) -> list[tuple[Path, int]]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    counts = [int(count) for count in split.get("shardLengths", [])]
    shards = []
    for i, count in enumerate(counts):
        values = {
            "{DATASET}": name,
            "{SPLIT}": split["name"],
            "{FILEFORMAT}": "tfrecord",
            "{SHARD_X_OF_Y}": f"{i:05d}-of-{len(counts):05d}",
            "{SHARD_INDEX}": f"{i:05d}",
            "{NUM_SHARDS}": f"{len(counts):05d}",
        }
        file = template
        for key, value in values.items():
            file = file.replace(key, value)
        shards.append((path / file, count))
    return shards
