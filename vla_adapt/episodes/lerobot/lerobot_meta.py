"""A LeRobot dataset folder, v2.1 or v3.0, by its `meta`: features, episodes, tasks, where its files lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from vla_adapt.episodes.lerobot.lerobot_episodes import EpisodeTable, read_episodes, read_tasks
from vla_adapt.episodes.lerobot.lerobot_features import STANDARD, TASK, VIDEO, parse_feature
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.format_marks import LEROBOT_INFO as INFO
from vla_adapt.episodes.storage.split_names import unknown_split


@dataclass(frozen=True)
class LeRobotFolder:
    """A LeRobot dataset folder; arrays over all its episodes E.

    Attributes:
        path: the folder.
        version: (2, 1) or (3, 0).
        rate_hz: frames per second.
        leaves: feature -> spec, with the standard ones and "task".
        tasks: task_index -> words.
        splits: split -> episodes.
        episodes: what `meta` says of each.
        lengths: steps of each episode.
        data_files: parquet files, in the order of their rows.
        data_file: number in `data_files` of each episode's file.
        first_row: where each episode begins in its file.
        videos: video feature -> (file below `path`, seconds where the episode begins in it) of each episode.
    """

    path: Path
    version: tuple[int, int]
    rate_hz: float
    leaves: dict[str, LeafSpec]
    tasks: dict[int, str]
    splits: dict[str, range]
    episodes: EpisodeTable
    lengths: Int64[np.ndarray, " E"]
    data_files: list[Path]
    data_file: Int64[np.ndarray, " E"]
    first_row: Int64[np.ndarray, " E"]
    videos: dict[str, tuple[list[str], Float64[np.ndarray, " E"]]]

    @property
    def name(self) -> str:
        """Name of the dataset: its folder's."""
        return self.path.resolve().name

    @classmethod
    def read(cls, path: Path) -> LeRobotFolder:
        """Read the `meta` folder.

        Raises:
            ValueError: a file is missing or damaged, an unknown version, episodes out of order.
        """
        info = _read_info(path)
        version = _version(info, path)
        leaves = dict(STANDARD)
        for name, feature in info["features"].items():
            if name not in STANDARD:
                leaves[name] = parse_feature(name, feature, str(path / INFO))
        leaves.setdefault(TASK, LeafSpec(Kind.TEXT))
        episodes = read_episodes(path, version)
        lengths = episodes.integers("length")
        names = _file_names(info, "data_path", "data/", path, episodes)
        files = list(dict.fromkeys(names))
        numbers = {name: i for i, name in enumerate(files)}
        data_file = np.array([numbers[name] for name in names], np.int64)
        videos = [name for name, leaf in leaves.items() if leaf.encoding == VIDEO and leaf.kind is Kind.IMAGE]
        return cls(
            path=path,
            version=version,
            rate_hz=float(info["fps"]),
            leaves=leaves,
            tasks=read_tasks(path, version),
            splits=_splits(info, path, len(episodes)),
            episodes=episodes,
            lengths=lengths,
            data_files=[path / name for name in files],
            data_file=data_file,
            first_row=_first_rows(path, data_file, lengths),
            videos={video: _video_places(info, video, path, episodes) for video in videos},
        )

    def split(self, name: str) -> range:
        """Episodes of a split.

        Raises:
            ValueError: unknown or empty split.
        """
        if name not in self.splits:
            raise unknown_split(self.path, name, self.splits)
        if not sum(self.lengths[i] for i in self.splits[name]):
            raise ValueError(
                f"{self.path}: split '{name}' is empty; choose one of {', '.join(self.splits)}, or record it"
            )
        return self.splits[name]


def _read_info(path: Path) -> dict[str, Any]:
    file = path / INFO
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; wanted a LeRobot dataset folder") from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); copy the dataset again") from None
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict) or not info["features"]:
        raise ValueError(f"{file}: declares no features; wanted a LeRobot v2.1 or v3.0 dataset")
    rate_hz = info.get("fps")
    if not isinstance(rate_hz, int | float) or not 0 < rate_hz < float("inf"):
        raise ValueError(f"{file}: fps is {rate_hz}, wanted frames per second")
    return info


def _version(info: Mapping[str, Any], path: Path) -> tuple[int, int]:
    text = str(info.get("codebase_version", "missing"))
    try:
        major, minor = (int(part) for part in text.removeprefix("v").split(".")[:2])
    except ValueError:
        major, minor = 0, 0
    if (major, minor) == (2, 1) or major == 3:
        return major, minor
    old = f"convert it with lerobot's own scripts (v{'2.0 -> v2.1' if major == 2 else '1 -> v2.0 -> v2.1'})"
    remedy = old if major in (1, 2) else "write it with lerobot, or convert it there"
    raise ValueError(f"{path / INFO}: LeRobot version '{text}', wanted v2.1 or v3; {remedy}")


def _splits(info: Mapping[str, Any], path: Path, episodes: int) -> dict[str, range]:
    """Splits are declared as "first:end" episode numbers; without any, all episodes are "train"."""
    splits: dict[str, range] = {}
    for name, text in (info.get("splits") or {"train": f"0:{episodes}"}).items():
        try:
            first, end = (int(part) for part in str(text).split(":"))
        except ValueError:
            first, end = 0, -1
        if not 0 <= first <= end <= episodes:
            raise ValueError(
                f"{path / INFO}: split '{name}' is '{text}', wanted 'first:end' of {episodes} episodes"
            )
        splits[name] = range(first, end)
    return splits


def _file_names(
    info: Mapping[str, Any], key: str, columns: str, path: Path, episodes: EpisodeTable, video: str = ""
) -> list[str]:
    """The path template `key` of info.json filled in for every episode."""
    template, size = str(info.get(key)), int(info.get("chunks_size") or 1000)
    chunks, files = episodes.integers(f"{columns}chunk_index"), episodes.integers(f"{columns}file_index")
    try:
        return [
            template.format(
                video_key=video,
                episode_index=i,
                episode_chunk=i // size,
                chunk_index=int(chunk),
                file_index=int(file),
            )
            for i, (chunk, file) in enumerate(zip(chunks, files, strict=True))
        ]
    except (LookupError, ValueError) as error:
        raise ValueError(f"{path / INFO}: {key} is '{template}', not a LeRobot path ({error!r})") from None


def _video_places(
    info: Mapping[str, Any], video: str, path: Path, episodes: EpisodeTable
) -> tuple[list[str], Float64[np.ndarray, " E"]]:
    columns = f"videos/{video}/"
    if "{chunk_index" in str(info.get("video_path")) and not episodes.has(f"{columns}from_timestamp"):
        raise ValueError(f"{path / 'meta'}: the episodes do not say where video '{video}' lies")
    names = _file_names(info, "video_path", columns, path, episodes, video)
    return [sys.intern(name) for name in names], episodes.seconds(f"{columns}from_timestamp")


def _first_rows(
    path: Path, data_file: Int64[np.ndarray, " E"], lengths: Int64[np.ndarray, " E"]
) -> Int64[np.ndarray, " E"]:
    """Row of its parquet file where each episode begins; files hold whole episodes, in order."""
    if (np.diff(data_file) < 0).any():
        episode = int(np.argmax(np.diff(data_file) < 0)) + 1
        raise ValueError(f"{path}: episode {episode} lies in an earlier data file than the one before it")
    starts = np.cumsum(lengths) - lengths
    begins = np.r_[True, np.diff(data_file) > 0][: len(data_file)]
    return starts - np.maximum.accumulate(np.where(begins, starts, 0))
