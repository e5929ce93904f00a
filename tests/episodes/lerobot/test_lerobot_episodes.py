"""Episodes and tasks as both versions list them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.episodes.lerobot.lerobot_episodes import json_lines, read_episodes, read_tasks


def test_facts_leave_out_where_files_lie(tmp_path: Path) -> None:
    folder = tmp_path / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    columns = {
        "episode_index": [0, 1],
        "length": [3, 4],
        "tasks": [["a"], ["b", "c"]],
        "metadata/seed": [7, 8],
        "data/file_index": [0, 0],
        "meta/episodes/file_index": [0, 0],
        "dataset_from_index": [0, 3],
        "stats/action/mean": [[0.0], [1.0]],
    }
    pq.write_table(pa.table(columns), folder / "file-000.parquet")
    episodes = read_episodes(tmp_path, (3, 0))
    assert len(episodes) == 2
    assert episodes.facts(1) == {"episode_index": 1, "length": 4, "tasks": ["b", "c"], "seed": 8}
    assert episodes.tasks(1) == ["b", "c"]
    assert episodes.integers("length").tolist() == [3, 4]
    assert episodes.integers("data/chunk_index").tolist() == [0, 0]
    assert not episodes.has("stats/action/mean")


@pytest.mark.parametrize("index_name", ["task", "__index_level_0__"])
def test_tasks_by_number(tmp_path: Path, index_name: str) -> None:
    (tmp_path / "meta").mkdir()
    table = pa.table({"task_index": [1, 0], index_name: ["second", "first"]})
    pq.write_table(table, tmp_path / "meta" / "tasks.parquet")
    assert read_tasks(tmp_path, (3, 0)) == {0: "first", 1: "second"}


def test_lines_that_are_blank_or_not_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"b": 2}\n')
    assert json_lines(file) == [{"a": 1}, {"b": 2}]
    file.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"a\.jsonl: line 1 is not a JSON object"):
        json_lines(file)


def test_episodes_need_not_have_the_same_facts(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    lines = [
        {"episode_index": 0, "length": 2},
        {"episode_index": 1, "length": 2, "tasks": "pour", "ok": True},
    ]
    (tmp_path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    episodes = read_episodes(tmp_path, (2, 1))
    assert [episodes.facts(i)["ok"] for i in range(2)] == [None, True]
    assert [episodes.tasks(i) for i in range(2)] == [[], ["pour"]]
