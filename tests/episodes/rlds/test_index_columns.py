"""Arrays grown on disk are ordinary `.npy` files; string tables stay bounded in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes.rlds import index_columns
from vla_adapt.episodes.rlds.index_columns import ColumnFiles, StringTable


def load(folder: Path, columns: ColumnFiles) -> dict[str, np.ndarray]:
    return {name: np.load(folder / file, mmap_mode="r") for name, file in columns.files().items()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool", "uint8", "complex64"])
def test_columns_load_as_what_was_appended(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 2, (n, 2, 3)).astype(dtype) for n in (1, 0, 1234, 7)]
    with ColumnFiles(tmp_path) as columns:
        columns.declare("a", np.dtype(dtype), (2, 3))
        columns.declare("never", np.int32)
        for piece in pieces:
            columns.append("a", piece)
        assert columns.rows("a") == 1242
    arrays = load(tmp_path, columns)
    np.testing.assert_array_equal(arrays["a"], np.concatenate(pieces))
    assert arrays["a"].dtype == dtype
    assert arrays["never"].shape == (0,)


def test_strings_are_stored_once_while_they_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_columns, "MAX_REMEMBERED_STRINGS", 3)
    texts = [[b"a", b"b", b"a"], [], [b"", b"a"], [b"d", b"a", b"d"]]
    with ColumnFiles(tmp_path) as columns:
        table = StringTable(columns, "t")
        ids = [table.ids_of(some).tolist() for some in texts]
    arrays = load(tmp_path, columns)
    ends = arrays["t:text_end"].tolist()
    stored = arrays["t:text"].tobytes()
    starts = [0, *ends]
    assert [[stored[starts[i] : ends[i]] for i in some] for some in ids] == texts
    assert ids == [[0, 1, 0], [], [2, 0], [3, 4, 3]]  # the table was forgotten before "d"


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    """Buffered bytes that cannot be written raise once, not again when the file is let go."""
    (tmp_path / "000.npy").symlink_to("/dev/full")

    def fill() -> None:
        with ColumnFiles(tmp_path) as columns:
            columns.declare("a", np.uint8)
            columns.append("a", np.zeros(1 << 20, np.uint8))

    with pytest.raises(OSError, match="No space left"):
        fill()
