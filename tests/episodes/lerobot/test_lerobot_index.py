"""The cached index of LeRobot datasets: built once, never stale, and where damage is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.episodes.lerobot import lerobot_index, parquet_columns
from vla_adapt.episodes.lerobot.lerobot_index import open_lerobot_index
from vla_adapt.episodes.lerobot.lerobot_meta import LeRobotFolder

ByHand = Callable[..., Any]


def open_index(path: Path, cache: Path | None = None) -> lerobot_index.LeRobotIndex:
    return open_lerobot_index(LeRobotFolder.read(path), cache)


def test_built_once_and_again_when_a_file_changes(
    lerobot_by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lerobot_by_hand("v2.1")
    builds: list[Path] = []
    build = lerobot_index._build
    monkeypatch.setattr(
        lerobot_index, "_build", lambda folder, into, *how: (builds.append(into), build(folder, into, *how))
    )
    index = open_index(made.path)
    assert isinstance(index.arrays["action"], np.memmap)
    np.testing.assert_array_equal(open_index(made.path).arrays["action"], made.action)
    assert len(builds) == 1
    file = made.path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("observation.state")
    changed = pa.array((made.state[4:10] + 1).tolist(), pa.list_(pa.float32()))
    pq.write_table(table.set_column(at, "observation.state", changed), file)
    np.testing.assert_array_equal(
        open_index(made.path).arrays["observation.state"][4:10], made.state[4:10] + 1
    )
    assert len(builds) == 2
    assert len(list((made.path / ".vla_adapt_index").glob("steps-*"))) == 1
    open_index(made.path, tmp_path / "cache")
    assert list((tmp_path / "cache" / "lerobot").glob("*/steps-*/manifest.json"))


def test_missing_parquet(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    (made.path / "data" / "chunk-001" / "episode_000002.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"episode_000002\.parquet: parquet file is missing; copy the dataset"
    ):
        open_index(made.path)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_skipping_notes_what_is_damaged_and_keeps_the_rest(lerobot_by_hand: ByHand, number: int) -> None:
    made = lerobot_by_hand("v2.1")
    file = made.path / "data" / f"chunk-00{number // 2}" / f"episode_00000{number}.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-200])
    folder = LeRobotFolder.read(made.path)
    with pytest.raises(ValueError, match=rf"episode_00000{number}\.parquet: not a readable parquet file"):
        open_lerobot_index(folder)
    index = open_lerobot_index(folder, on_error="skip")
    assert [at for at, _ in index.damaged] == [number]
    wanted = made.action.copy()
    wanted[sum(made.lengths[:number]) : sum(made.lengths[: number + 1])] = 0
    np.testing.assert_array_equal(index.arrays["action"], wanted)
    with pytest.raises(ValueError, match="not a readable parquet file"):
        open_lerobot_index(folder)
    file.write_bytes(content)
    np.testing.assert_array_equal(open_lerobot_index(folder).arrays["action"], made.action)


def test_half_a_file_read_before_the_damage_is_blank(
    lerobot_by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lerobot_by_hand("v2.1")
    edit(
        made.path / "data" / "chunk-000" / "episode_000001.parquet",
        replaced("task_index", [1, 1, 1, 1, None, 1]),
    )
    monkeypatch.setattr(parquet_columns, "_BATCH_ROWS", 2)
    index = open_lerobot_index(LeRobotFolder.read(made.path), on_error="skip")
    assert "column 'task_index' has 1 empty values" in index.damaged[0][1]
    assert not index.arrays["action"][4:10].any()
    np.testing.assert_array_equal(index.arrays["action"][10:], made.action[10:])


def test_no_file_is_readable(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    for file in made.path.glob("data/*/*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no readable parquet file: .*episode_000000\.parquet.* is missing"):
        open_lerobot_index(LeRobotFolder.read(made.path), on_error="skip")


def edit(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.slice(1), r"has 5 rows, meta says 6 for episodes 1\.\.1; copy"),
        (lambda table: table.drop_columns(["action"]), "no column 'action', the first file has it"),
        (replaced("episode_index", [1, 1, 0, 1, 1, 1]), r"row 2 has episode_index 0, wanted 1 \(.* step 2\)"),
        (replaced("frame_index", [0, 1, 2, 4, 3, 5]), r"row 3 has frame_index 4, wanted 3 \(.* step 3\)"),
        (replaced("action", ["x"] * 6), r"column 'action' holds string, info\.json says number"),
        (replaced("action", [[1.0] * 6] * 6), r"column 'action' has 36 numbers in 6 rows, .*float32\[7\]"),
        (replaced("task_index", [1, 1, None, 1, 1, 1]), "column 'task_index' has 1 empty values"),
    ],
)  # fmt: skip
def test_damaged_parquet(lerobot_by_hand: ByHand, change: Callable[[pa.Table], pa.Table], match: str) -> None:
    made = lerobot_by_hand("v2.1")
    edit(made.path / "data" / "chunk-000" / "episode_000001.parquet", change)
    with pytest.raises(ValueError, match=match) as caught:
        open_index(made.path)
    assert "episode_000001.parquet" in str(caught.value)
    assert not list((made.path / ".vla_adapt_index").iterdir())


def test_not_parquet(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1")
    (made.path / "data" / "chunk-000" / "episode_000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"episode_000001\.parquet: not a readable parquet file"):
        open_index(made.path)
