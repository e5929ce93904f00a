"""Columns as Hugging Face and pandas expect them, and files that roll over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.episodes.lerobot.lerobot_columns import (
    ParquetParts,
    encode_png,
    image_column,
    lerobot_place,
    number_column,
    tasks_table,
)
from vla_adapt.episodes.lerobot.lerobot_features import parse_feature
from vla_adapt.episodes.storage.image_codec import decode_image


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((), "int32"),
        ((1,), "int32"),
        ((2,), "fixed_size_list<item: int32>[2]"),
        ((2, 3), "fixed_size_list<item: list<item: int32>>[2]"),
        ((2, 3, 4), "fixed_size_list<item: list<item: list<item: int32>>>[2]"),
    ],
)
def test_number_columns(shape: tuple[int, ...], wanted: str) -> None:
    values = np.arange(5 * int(np.prod(shape)), dtype=np.int32).reshape(5, *shape)
    column = number_column(values)
    assert str(column.type) == wanted
    assert column.to_pylist() == (values.ravel() if shape == (1,) else values).tolist()


def test_pandas_sees_the_words_as_index(tmp_path: Path) -> None:
    pq.write_table(tasks_table(["pick", "place"]), tmp_path / "tasks.parquet")
    frame = pd.read_parquet(tmp_path / "tasks.parquet")
    assert frame.index.name == "task"
    assert frame.loc["place"].task_index == 1
    assert frame.iloc[0].name == "pick"


def test_images_keep_their_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    png = encode_png(image)
    leaf = parse_feature("x", {"dtype": "image", "shape": [4, 6, 3]}, "")
    np.testing.assert_array_equal(decode_image(png, leaf), image)
    rows = image_column([png, b"\xff\xd8jpeg"]).to_pylist()
    assert [row["bytes"] for row in rows] == [png, b"\xff\xd8jpeg"]
    assert [row["path"] for row in rows] == ["frame-000000.png", "frame-000001.jpg"]


def test_full_files_roll_over(tmp_path: Path) -> None:
    parts = ParquetParts(tmp_path, file_bytes=1000, chunk_files=2)
    numbers = []
    for i in range(6):
        numbers.append(parts.next_file)
        parts.write(pa.table({"a": np.random.default_rng(i).random(200)}))
    parts.close()
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert lerobot_place(3, 2, ".parquet") == "chunk-001/file-001.parquet"
    assert len(list(tmp_path.glob("chunk-00[012]/file-00[01].parquet"))) == 6
    big = ParquetParts(tmp_path / "big", file_bytes=1 << 30, chunk_files=2)
    for _ in range(3):
        big.write(pa.table({"a": np.zeros(10)}))
    big.write(pa.table({"a": np.zeros(1 << 20)}))
    big.close()
    file = pq.ParquetFile(tmp_path / "big" / "chunk-000" / "file-000.parquet")
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert rows == [10, 10, 10, 1 << 19, 1 << 19]
