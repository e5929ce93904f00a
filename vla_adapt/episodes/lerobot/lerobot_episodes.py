"""What a LeRobot dataset says of its episodes and tasks in `meta`: JSON lines (v2.1) or parquet (v3.0)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from vla_adapt.episodes.lerobot.parquet_columns import open_parquet, read_table
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

# Columns in which we store the facts of an episode that LeRobot has no place for.
METADATA_COLUMN = "metadata/"
_TECHNICAL = ("data/", "videos/", "meta/", "dataset_from_index", "dataset_to_index")


class EpisodeTable:
    """One row an episode, numbered 0, 1, 2, ..., as recorded; kept in columns, so that millions fit."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def has(self, column: str) -> bool:
        """Whether the dataset records this."""
        return column in self._table.column_names

    def integers(self, column: str) -> Int64[np.ndarray, " E"]:
        """A whole-number column; zeros if there is none."""
        if not self.has(column):
            return np.zeros(len(self), np.int64)
        return self._table[column].cast(pa.int64()).to_numpy()

    def seconds(self, column: str) -> Float64[np.ndarray, " E"]:
        """A column of times; zeros if there is none."""
        if not self.has(column):
            return np.zeros(len(self), np.float64)
        return self._table[column].cast(pa.float64()).to_numpy()

    def tasks(self, episode: int) -> list[str]:
        """The episode's instructions in words."""
        tasks = self._table["tasks"][episode].as_py() if self.has("tasks") else None
        return [tasks] if isinstance(tasks, str) else list(tasks or [])

    @property
    def leaves(self) -> dict[str, LeafSpec]:
        """Dtypes of the facts that are numbers or lists of them."""
        leaves: dict[str, LeafSpec] = {}
        for column in self._table.schema:
            kind = column.type
            while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
                kind = kind.value_type
            if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                name = column.name.removeprefix(METADATA_COLUMN)
                leaves[name] = LeafSpec(Kind.NUMBER, (), np.dtype(kind.to_pandas_dtype()).name)
        return leaves

    def facts(self, episode: int) -> dict[str, Any]:
        """episode_index, length, tasks and whatever else is recorded, without where the files lie."""
        return {
            name.removeprefix(METADATA_COLUMN): self._table[name][episode].as_py()
            for name in self._table.column_names
            if not name.startswith(_TECHNICAL)
        }


def read_episodes(path: Path, version: tuple[int, int]) -> EpisodeTable:
    """The episodes of a dataset folder, in order.

    Raises:
        ValueError: the files are missing or damaged, or the episodes are not numbered 0, 1, 2, ...
    """
    if version[0] == 2:
        where = path / "meta" / "episodes.jsonl"
        records = json_lines(where)
        columns = {name: [record.get(name) for record in records] for name in _names(records)}
        table = _table(columns, where)
    else:
        where = path / "meta" / "episodes"
        files = sorted(where.glob("*/*.parquet"))
        if not files:
            raise ValueError(f"{where}: no parquet file in it; copy the dataset again")
        table = pa.concat_tables([_without_statistics(file) for file in files], promote_options="permissive")
    return EpisodeTable(_checked(table, where))


def read_tasks(path: Path, version: tuple[int, int]) -> dict[int, str]:
    """Task number -> its words.

    Raises:
        ValueError: the file is missing or damaged.
    """
    file = path / "meta" / ("tasks.jsonl" if version[0] == 2 else "tasks.parquet")
    if version[0] == 2:
        records = json_lines(file)
        table = _table({name: [record.get(name) for record in records] for name in _names(records)}, file)
    else:
        table = read_table(file)
    # In parquet the words are the index of a pandas frame: named "task" or, by some versions, not named.
    words = [name for name in table.column_names if name != "task_index"]
    words.sort(key=lambda name: name != "task")
    if not words or len(words) == table.num_columns:
        have = ", ".join(table.column_names) or "nothing"
        raise ValueError(f"{file}: holds {have}, wanted 'task_index' and 'task'; copy the dataset again")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[words[0]].to_pylist()), strict=True))


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        ValueError: missing, or a line is not a JSON object; names it.
    """
    if not file.is_file():
        raise ValueError(f"{file}: missing; copy the dataset again")
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{file}: line {number} is not a JSON object; copy the dataset again")
        records.append(record)
    return records


def _names(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _table(columns: dict[str, list[Any]], where: Path) -> pa.Table:
    try:
        return pa.table(columns)
    except pa.ArrowException as error:
        raise ValueError(f"{where}: entries do not agree in their kinds of values ({error})") from None


def _without_statistics(file: Path) -> pa.Table:
    columns = open_parquet(file).schema_arrow.names
    return read_table(file, [name for name in columns if not name.startswith("stats/")])


def _checked(table: pa.Table, where: Path) -> pa.Table:
    for name in ("episode_index", "length"):
        if name not in table.column_names:
            raise ValueError(f"{where}: no '{name}'; it has {', '.join(table.column_names) or 'no episodes'}")
        column = table[name]
        if not pa.types.is_integer(column.type) or column.null_count or (column.to_numpy() < 0).any():
            raise ValueError(
                f"{where}: '{name}' holds {column.type}, wanted numbers from 0 for every episode"
            )
    numbers = table["episode_index"].to_numpy()
    wrong = numbers != np.arange(len(numbers))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{where}: episode {numbers[place]} is listed in place {place}; wanted episodes numbered "
            "0, 1, 2, ... in order; repair the dataset with lerobot"
        )
    return table
