"""Parquet columns as arrays: every way numbers are stored, row groups of any size, clear errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.episodes.lerobot.parquet_columns import RowGroups, numbers, open_parquet, read_table
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec


def leaf(dtype: str, *shape: int) -> LeafSpec:
    return LeafSpec(Kind.NUMBER, shape, dtype)


def test_every_way_numbers_are_stored() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    flat = values.reshape(3, 4)
    for column in (
        pa.array(flat.tolist(), pa.list_(pa.float32())),
        pa.array(flat.tolist(), pa.large_list(pa.float64())),
        pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 4),
    ):
        np.testing.assert_array_equal(numbers(column, leaf("float32", 4), "x"), flat)
    nested = pa.array(values.tolist(), pa.list_(pa.list_(pa.float64())))
    got = numbers(nested, leaf("float64", 2, 2), "x")
    np.testing.assert_array_equal(got, values)
    assert got.dtype == np.float32
    assert numbers(pa.array([True, False]), leaf("bool"), "x").tolist() == [True, False]
    assert numbers(pa.array([1, 2]), leaf("float32"), "x").dtype == np.float32
    sliced = pa.array(flat.tolist(), pa.list_(pa.float32()))[1:]
    np.testing.assert_array_equal(numbers(sliced, leaf("float32", 4), "x"), flat[1:])


@pytest.mark.parametrize(
    ("column", "spec", "match"),
    [
        (pa.array([1.0, None]), leaf("float32"), "x has 1 empty values"),
        (pa.array([[1.0], None]), leaf("float32", 1), "x has 1 empty values"),
        (pa.array([1.5]), leaf("int64"), r"x holds double, info\.json says number int64\[\]"),
        (pa.array(["a"]), leaf("float32"), "x holds string"),
        (pa.array([[1.0, 2.0], [1.0]]), leaf("float32", 2), r"x has 3 numbers in 2 rows, .*float32\[2\]"),
    ],
)
def test_refusals(column: pa.Array, spec: LeafSpec, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        numbers(column, spec, "x")


@pytest.mark.parametrize("group", [1, 4, 100])
def test_rows_across_groups(tmp_path: Path, group: int) -> None:
    file = tmp_path / "a.parquet"
    values = np.arange(30, dtype=np.int64)
    table = pa.table({"a.b": values, "a.b.c": -values, "picture": [{"bytes": bytes([i])} for i in range(30)]})
    pq.write_table(table, file, row_group_size=group)
    for groups in (RowGroups(), RowGroups(kept_bytes=0), pickle.loads(pickle.dumps(RowGroups(1, 50)))):
        for first, count in ((0, 30), (3, 9), (29, 1), (4, 4)):
            assert groups.slice(file, "a.b", first, count).to_pylist() == list(range(first, first + count))
        assert [groups.value(file, "picture", row)["bytes"] for row in (29, 0, 7)] == [
            b"\x1d",
            b"\x00",
            b"\x07",
        ]


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.parquet" for i in range(6)]
    for i, file in enumerate(files):
        pq.write_table(pa.table({"a": np.arange(1000) + i}), file, row_group_size=100)
    groups = RowGroups(kept_files=2, kept_bytes=2000)
    for row in range(0, 1000, 50):
        assert [groups.value(file, "a", row) for file in files] == [row + i for i in range(6)]
    assert len(groups._files) == 2
    assert sum(kept.values.nbytes for kept in groups._groups.values()) == groups._bytes <= 2000


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    with pytest.raises(ValueError, match=r"a\.parquet: parquet file is missing"):
        open_parquet(file)
    pq.write_table(pa.table({"a": np.arange(1000)}), file)
    data = file.read_bytes()
    file.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file"):
        read_table(file)
    file.write_bytes(data)
    groups = RowGroups()
    with pytest.raises(ValueError, match=r"a\.parquet: row 1000 of 1000 asked"):
        groups.value(file, "a", 1000)
    with pytest.raises(ValueError, match=r"a\.parquet: column 'b' cannot be read"):
        groups.value(file, "b", 0)
