"""The meta folder of LeRobot datasets: where files lie, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.episodes.lerobot.lerobot_meta import LeRobotFolder
from vla_adapt.episodes.storage.format_marks import is_lerobot

CAMERA = "observation.images.top"
ByHand = Callable[..., Any]


def test_places_of_v3(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v3.0", files=(0, 0, 1))
    folder = LeRobotFolder.read(made.path)
    assert is_lerobot(made.path)
    assert (folder.version, folder.rate_hz, folder.name) == ((3, 0), 10.0, "by_hand")
    data = made.path / "data" / "chunk-000"
    assert folder.data_files == [data / "file-000.parquet", data / "file-001.parquet"]
    assert folder.data_file.tolist() == [0, 0, 1]
    assert folder.first_row.tolist() == [0, 4, 0]
    files, starts = folder.videos[CAMERA]
    assert files == [f"videos/{CAMERA}/chunk-000/file-00{i}.mp4" for i in (0, 0, 1)]
    assert starts.tolist() == [0.0, 0.4, 0.0]
    assert folder.tasks == {0: "task of 0", 1: "task of 1", 2: "a second task", 3: "task of 2"}


def test_places_of_v2_are_of_the_templates(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    folder = LeRobotFolder.read(made.path)
    assert folder.version == (2, 1)
    assert [str(file.relative_to(made.path)) for file in folder.data_files] == [
        "data/chunk-000/episode_000000.parquet",
        "data/chunk-000/episode_000001.parquet",
        "data/chunk-001/episode_000002.parquet",
    ]
    assert folder.first_row.tolist() == [0, 0, 0]
    files, starts = folder.videos[CAMERA]
    assert files[2] == f"videos/chunk-001/{CAMERA}/episode_000002.mp4"
    assert starts.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"codebase_version": "v2.0"}, r"LeRobot version 'v2\.0', wanted v2\.1 or v3; convert it with"),
        ({"codebase_version": "v1.6"}, r"LeRobot version 'v1\.6', wanted v2\.1 or v3; convert it with"),
        ({"codebase_version": "v4.0"}, r"LeRobot version 'v4\.0', wanted v2\.1 or v3; write it with lerobot"),
        ({"codebase_version": None}, "LeRobot version 'None'"),
        ({"features": {}}, "declares no features"),
        ({"features": None}, "declares no features"),
        ({"fps": 0}, "fps is 0, wanted frames per second"),
        ({"splits": {"train": "0:9"}}, "split 'train' is '0:9', wanted 'first:end' of 3 episodes"),
        ({"splits": {"train": "all"}}, "split 'train' is 'all'"),
        ({"data_path": "data/{nonsense}.parquet"}, r"data_path is 'data/\{nonsense\}\.parquet', not a"),
    ],
)  # fmt: skip
def test_refused_info(lerobot_by_hand: ByHand, change: dict[str, Any], match: str) -> None:
    made = lerobot_by_hand("v3.0", edit=lambda info: info.update(change))
    with pytest.raises(ValueError, match=match) as caught:
        LeRobotFolder.read(made.path)
    assert "info.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_info_is_not_json(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    (made.path / "meta" / "info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info\.json: not valid JSON"):
        LeRobotFolder.read(made.path)


def test_v2_episodes_out_of_order_damaged_or_missing(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    file = made.path / "meta" / "episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(ValueError, match=r"episodes\.jsonl: episode 2 is listed in place 1"):
        LeRobotFolder.read(made.path)
    file.write_text(lines[0] + "\n{broken\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl: line 2 is not a JSON object"):
        LeRobotFolder.read(made.path)
    file.write_text(json.dumps({"episode_index": 0}) + "\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl: no 'length'"):
        LeRobotFolder.read(made.path)
    file.write_text(json.dumps({"episode_index": 0, "length": "4"}) + "\n")
    with pytest.raises(ValueError, match="'length' holds string"):
        LeRobotFolder.read(made.path)
    file.unlink()
    with pytest.raises(ValueError, match=r"episodes\.jsonl: missing"):
        LeRobotFolder.read(made.path)


def test_v3_episodes_and_tasks_damaged_or_missing(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    file = made.path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([1, 0, 2]), file)
    with pytest.raises(ValueError, match=r"meta/episodes: episode 1 is listed in place 0"):
        LeRobotFolder.read(made.path)
    pq.write_table(table.drop_columns([f"videos/{CAMERA}/from_timestamp"]), file)
    with pytest.raises(ValueError, match=rf"the episodes do not say where video '{CAMERA}' lies"):
        LeRobotFolder.read(made.path)
    pq.write_table(table, file)
    pq.write_table(pa.table({"task_index": [0]}), made.path / "meta" / "tasks.parquet")
    with pytest.raises(ValueError, match=r"tasks\.parquet: holds task_index, wanted 'task_index' and 'task'"):
        LeRobotFolder.read(made.path)
    file.unlink()
    with pytest.raises(ValueError, match="meta/episodes: no parquet file in it"):
        LeRobotFolder.read(made.path)


def test_several_episode_files(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand()
    file = made.path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 2), file)
    pq.write_table(table.slice(2).drop_columns(["success"]), file.with_name("file-001.parquet"))
    folder = LeRobotFolder.read(made.path)
    assert folder.lengths.tolist() == [4, 6, 3]
    assert [folder.episodes.facts(i)["success"] for i in range(3)] == [False, True, None]
