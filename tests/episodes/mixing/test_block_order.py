"""The reading order in blocks: a permutation that keeps few blocks open."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.mixing.block_order import BlockOrder
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.storage import remote_blocks


def blocks(ends: np.ndarray, block_steps: int) -> np.ndarray:
    """Block of each row, worked out one episode at a time: a new one when an episode begins past a mark."""
    mark, number, of_row, start = 0, -1, [], 0
    for end in ends.tolist():
        if end > start and (number < 0 or start // block_steps > mark):
            mark, number = start // block_steps, number + 1
        of_row += [number] * (end - start)
        start = end
    return np.array(of_row)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(any),
    st.integers(2, 12),
    st.integers(1, 50),
    st.integers(0, 99),
)
def test_every_row_once(lengths: list[int], open_blocks: int, block_steps: int, seed: int) -> None:
    ends = np.cumsum(lengths)
    order = BlockOrder(ends, open_blocks, (seed, 0, 0), block_steps)
    assert sorted(order.row(k) for k in range(ends[-1])) == list(range(ends[-1]))


@pytest.mark.parametrize("open_blocks", [2, 7, 16])
def test_few_blocks_are_open_in_any_stretch(open_blocks: int) -> None:
    ends = np.cumsum(np.random.default_rng(3).integers(5, 60, size=400))
    of_row = blocks(ends, 100)
    assert of_row.max() > 100, "many more blocks than may be open"
    orders = [BlockOrder(ends, open_blocks, (1, 0, epoch), 100) for epoch in range(3)]
    opened = np.array([of_row[order.row(k)] for order in orders for k in range(ends[-1])])
    stretch = min(int(np.diff(order.slot_ends, prepend=0).min()) for order in orders)
    assert stretch >= 30
    most = max(len(set(opened[k : k + stretch])) for k in range(len(opened) - stretch))
    assert open_blocks // 2 < most <= open_blocks
    inner = opened[: int(orders[0].slot_ends[-1]) - stretch]
    steady = max(len(set(inner[k : k + stretch])) for k in range(len(inner) - stretch))
    assert steady <= open_blocks // 2 + 1


def test_a_stretch_mixes_blocks_and_epochs_differ() -> None:
    ends = np.cumsum(np.full(500, 20))
    one, two = (BlockOrder(ends, 20, (1, 0, epoch), 100) for epoch in range(2))
    first = [one.row(k) for k in range(100)]
    assert len({row // 100 for row in first}) == 10
    assert first != [two.row(k) for k in range(100)]
    again = BlockOrder(ends, 20, (1, 0, 0), 100)
    assert [again.row(k) for k in reversed(range(100))] == first[::-1]


def test_memory_is_for_blocks_not_for_rows() -> None:
    """100 M steps: the tables of an epoch stay below 20 MB and a row far inside is found at once."""
    order = BlockOrder(np.cumsum(np.full(1_000_000, 100)), 64, (0, 0, 0))
    tables = sum(table.nbytes for table in vars(order).values() if isinstance(table, np.ndarray))
    assert tables < 20e6
    assert 0 <= order.row(77_777_777) < 100_000_000


def test_refuses_a_single_block() -> None:
    with pytest.raises(ValueError, match="open_blocks 1: wanted at least 2"):
        BlockOrder(np.array([5]), 1, (0, 0, 0))


@pytest.mark.slow
def test_a_remote_dataset_is_fetched_about_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for a fifth of the data in the cache; a whole shuffle fetches a block for most samples."""
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(0)
    with RldsWriter(tmp_path, "remote", robot, shard_bytes=60_000) as writer:
        for _ in range(320):
            writer.add("train", fake_data(robot, rng, 32, image_size=8))
    monkeypatch.setenv("VLA_ADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_blocks, "BLOCK", 4 << 10)
    monkeypatch.setattr(remote_blocks, "CACHE_BYTES", 3 << 20)
    fetched = Counter[str]()
    genuine = LocalFileSystem.cat_file

    def counting(files: LocalFileSystem, path: str, **span: int) -> bytes:
        data = genuine(files, path, **span)
        fetched[order] += len(data)
        return data

    monkeypatch.setattr(LocalFileSystem, "cat_file", counting)
    files = list(writer.path.glob("*.tfrecord*"))
    size = sum(file.stat().st_size for file in files)
    for order, open_blocks in (("shuffle", None), ("shards", 6)):
        dataset = open_dataset(f"file://{writer.path}")
        mixture = Mixture([(dataset, 1.0)], 0, 1, proprio=False, open_blocks=open_blocks)
        fetched.pop(order, None)  # by opening
        monkeypatch.setattr(remote_blocks, "_OF_PROCESS", None)
        for n in range(mixture.steps[0]):
            mixture.window(n)
    print({order: round(count / size, 2) for order, count in fetched.items()}, len(files), size)
    assert len(files) > 120
    assert fetched["shards"] < 1.2 * size
    assert fetched["shuffle"] > 3 * fetched["shards"]
