"""Small recorded datasets shared by the episode tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data
from vla_adapt.episodes.rlds.write import RldsWriter

LENGTHS = {"train": (5, 9, 3, 7, 6), "val": (4, 2)}


@pytest.fixture(scope="session")
def robot() -> Embodiment:
    return Embodiment.load("franka_panda")


@pytest.fixture(scope="session")
def recordings(robot: Embodiment) -> dict[str, list[EpisodeData]]:
    """Random episodes by split, with extras of every storable kind."""
    rng = np.random.default_rng(7)
    episodes = {
        split: [fake_data(robot, rng, length) for length in sizes] for split, sizes in LENGTHS.items()
    }
    for data in (data for split in episodes.values() for data in split):
        steps = len(data)
        data.extra = {
            "object_pose": rng.normal(size=(steps, 3)).astype(np.float32),
            "count": rng.integers(-(2**62), 2**62, size=(steps, 2)),
            "touch": rng.integers(0, 2, size=steps).astype(bool),
            "wide": rng.normal(size=(steps, 80)).astype(np.float32),
        }
    return episodes


@pytest.fixture
def written(tmp_path: Path, robot: Embodiment, recordings: dict[str, list[EpisodeData]]) -> Path:
    """A fresh dataset on disk, several shards, holding `recordings`."""
    with RldsWriter(tmp_path / "data", "written", robot, shard_bytes=30_000) as writer:
        for split, episodes in recordings.items():
            for data in episodes:
                writer.add(split, data)
    return writer.path


@dataclass
class LeRobotByHand:
    """A LeRobot dataset written without our code, and what it must read back as; arrays over all steps."""

    path: Path
    lengths: tuple[int, ...]
    action: np.ndarray
    state: np.ndarray
    frames: np.ndarray
    tasks: list[str]
    fps: int = 10


@pytest.fixture
def lerobot_by_hand(tmp_path: Path) -> Callable[..., LeRobotByHand]:
    """Writes a small dataset as `LEROBOT_FORMAT` describes: `lerobot_by_hand("v2.1", images="video", ...)`.

    Video is lossless RGB, several episodes an mp4 in v3.0; episode 1 holds two tasks. `edit(info)` may
    change info.json, `drop` leaves columns out.
    """

    def write(
        version: str = "v3.0",
        images: str = "video",
        lengths: tuple[int, ...] = (4, 6, 3),
        edit: Callable[[dict[str, Any]], None] = lambda info: None,
        drop: Sequence[str] = (),
        keyframe_every: int = 2,
        files: tuple[int, ...] = (0, 0, 1),
    ) -> LeRobotByHand:
        made = _recorded(tmp_path / "by_hand", lengths)
        steps, fps = len(made.action), made.fps
        episode = np.repeat(np.arange(len(lengths)), lengths)
        frame_index = np.concatenate([np.arange(length) for length in lengths])
        words = list(dict.fromkeys(made.tasks))
        columns: dict[str, Any] = {
            "observation.state": pa.array(made.state.tolist(), pa.list_(pa.float32())),
            "action": pa.array(made.action.tolist(), pa.list_(pa.float32(), 7)),
            "next.done": pa.array(frame_index == np.repeat(lengths, lengths) - 1),
            "note": pa.array([f"note {i % 2}" for i in range(steps)]),
            "timestamp": pa.array((frame_index / fps).astype(np.float32)),
            "frame_index": pa.array(frame_index),
            "episode_index": pa.array(episode),
            "index": pa.array(np.arange(steps)),
            "task_index": pa.array([words.index(task) for task in made.tasks]),
        }
        camera = "observation.images.top"
        if images == "image":
            pngs = [
                {"bytes": _png(frame), "path": f"frame-{i:06d}.png"} for i, frame in enumerate(made.frames)
            ]
            columns[camera] = pa.array(pngs)
        table = pa.table({name: column for name, column in columns.items() if name not in drop})
        write_table, write_meta = (_write_v3, _meta_v3) if version[1] == "3" else (_write_v2, _meta_v2)
        video = write_table(made, table, camera if images == "video" else None, files, keyframe_every)
        info = _info(made, version, images, camera)
        edit(info)
        write_meta(made, words, video)
        (made.path / "meta" / "info.json").write_text(json.dumps(info))
        return made

    return write


def _recorded(path: Path, lengths: tuple[int, ...]) -> LeRobotByHand:
    rng = np.random.default_rng(11)
    steps = sum(lengths)
    tasks = [f"task of {i}" for i, length in enumerate(lengths) for _ in range(length)]
    tasks[lengths[0] + 2 : lengths[0] + 4] = ["a second task"] * 2
    return LeRobotByHand(
        path=path,
        lengths=lengths,
        action=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        state=rng.normal(size=(steps, 8)).astype(np.float32),
        frames=rng.integers(0, 256, (steps, 16, 24, 3), dtype=np.uint8),
        tasks=tasks,
    )


def _info(made: LeRobotByHand, version: str, images: str, camera: str) -> dict[str, Any]:
    one = {"shape": [1], "names": None}
    folders = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    if version == "v2.1":
        folders = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    return {
        "codebase_version": version,
        "fps": made.fps,
        "robot_type": "panda",
        "chunks_size": 2,
        "data_path": data,
        "video_path": folders,
        "splits": {"train": f"0:{len(made.lengths)}"},
        "features": {
            "observation.state": {"dtype": "float32", "shape": [8], "names": None},
            "action": {"dtype": "float32", "shape": [7], "names": {"motors": list("xyzrpyg")}},
            "next.done": {"dtype": "bool", **one},
            "note": {"dtype": "string", **one},
            camera: {"dtype": images, "shape": [3, 16, 24], "names": ["channels", "height", "width"]},
            "timestamp": {"dtype": "float32", **one},
            **{
                name: {"dtype": "int64", **one}
                for name in ("frame_index", "episode_index", "index", "task_index")
            },
        },
    }


def _write_v2(
    made: LeRobotByHand, table: pa.Table, camera: str | None, files: tuple[int, ...], keyframe_every: int
) -> None:
    start = 0
    for i, length in enumerate(made.lengths):
        chunk = f"chunk-{i // 2:03d}"
        _save(made.path / "data" / chunk / f"episode_{i:06d}.parquet", table.slice(start, length))
        if camera:
            target = made.path / "videos" / chunk / camera / f"episode_{i:06d}.mp4"
            write_video(target, made.frames[start : start + length], made.fps, keyframe_every)
        start += length


def _write_v3(
    made: LeRobotByHand, table: pa.Table, camera: str | None, files: tuple[int, ...], keyframe_every: int
) -> dict[str, Any]:
    """Data file 0 holds all episodes but the last; `files` says which video file each episode is in."""
    last = sum(made.lengths[:-1])
    _save(made.path / "data" / "chunk-000" / "file-000.parquet", table.slice(0, last))
    _save(made.path / "data" / "chunk-000" / "file-001.parquet", table.slice(last))
    ends = np.cumsum(made.lengths)
    columns: dict[str, Any] = {
        "data/chunk_index": [0] * len(ends),
        "data/file_index": [0] * (len(ends) - 1) + [1],
        "dataset_from_index": (ends - made.lengths).tolist(),
        "dataset_to_index": ends.tolist(),
    }
    if camera is None:
        return columns
    frames = np.split(made.frames, ends[:-1])
    starts = []
    for i, length in enumerate(made.lengths):
        before = sum(made.lengths[j] for j in range(i) if files[j] == files[i])
        starts.append((before / made.fps, (before + length) / made.fps))
    for file in set(files):
        joined = np.concatenate([part for part, where in zip(frames, files, strict=True) if where == file])
        target = made.path / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4"
        write_video(target, joined, made.fps, keyframe_every)
    stem = f"videos/{camera}/"
    columns[f"{stem}chunk_index"] = [0] * len(ends)
    columns[f"{stem}file_index"] = list(files)
    columns[f"{stem}from_timestamp"] = [start for start, _ in starts]
    columns[f"{stem}to_timestamp"] = [end for _, end in starts]
    return columns


def _episode_tasks(made: LeRobotByHand) -> list[list[str]]:
    ends = np.cumsum(made.lengths)
    return [
        list(dict.fromkeys(made.tasks[end - length : end]))
        for end, length in zip(ends, made.lengths, strict=True)
    ]


def _meta_v2(made: LeRobotByHand, words: list[str], columns: None) -> None:
    meta = made.path / "meta"
    meta.mkdir()
    episodes = [
        {"episode_index": i, "tasks": tasks, "length": length, "success": i > 0}
        for i, (tasks, length) in enumerate(zip(_episode_tasks(made), made.lengths, strict=True))
    ]
    tasks = [{"task_index": i, "task": text} for i, text in enumerate(words)]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(episode) + "\n" for episode in episodes))
    (meta / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))


def _meta_v3(made: LeRobotByHand, words: list[str], columns: dict[str, Any]) -> None:
    meta = made.path / "meta"
    rows = {
        "episode_index": list(range(len(made.lengths))),
        "tasks": _episode_tasks(made),
        "length": list(made.lengths),
        "success": [i > 0 for i in range(len(made.lengths))],
        **columns,
        "stats/action/mean": [[0.0] * 7] * len(made.lengths),
    }
    _save(meta / "episodes" / "chunk-000" / "file-000.parquet", pa.table(rows))
    frame = {"task_index": list(range(len(words))), "__index_level_0__": words}
    _save(meta / "tasks.parquet", pa.table(frame))


def _save(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def write_video(path: Path, frames: np.ndarray, fps: int, keyframe_every: int) -> None:
    """Lossless RGB h264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.options = {"qp": "0", "g": str(keyframe_every)}
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())
