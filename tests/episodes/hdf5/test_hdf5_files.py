"""Handles: bounded in number, opened anew after fork and pickling."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_adapt.episodes.hdf5 import hdf5_files
from vla_adapt.episodes.hdf5.hdf5_files import OpenFiles

FILES, NAMES = 8, ("a", "b/c", "b/d")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{i}.h5" for i in range(FILES)]
    for i, path in enumerate(made):
        with h5py.File(path, "w") as file:
            file.attrs["robot"] = "panda"
            file.create_group("b").attrs["number"] = i
            for name in NAMES:
                file[name] = rng.integers(0, 256, (9, 5), dtype=np.uint8)
    return made


def plain(path: Path, name: str, row: int) -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][row]


def test_any_order_with_few_open_files(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_files, "MAX_OPEN_FILES", 3)
    monkeypatch.setattr(hdf5_files, "MAX_OPEN_DATASETS", 4)
    files, rng = OpenFiles(paths), np.random.default_rng(0)
    for _ in range(300):
        file, name, row = int(rng.integers(FILES)), NAMES[rng.integers(3)], int(rng.integers(9))
        np.testing.assert_array_equal(files.read(file, name, row), plain(paths[file], name, row))
        assert len(files._files) <= 3
        assert len(files._datasets) <= 4


def test_pickled_and_forked_readers_open_their_own(paths: list[Path]) -> None:
    files = OpenFiles(paths)
    wanted = files.read(5, "a", 2)
    copy = pickle.loads(pickle.dumps(files))
    assert not copy._files
    np.testing.assert_array_equal(copy.read(5, "a", 2), wanted)
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(files, send))
    child.start()
    assert receive.poll(60), "the child hangs"
    got, owner = receive.recv()
    child.join()
    np.testing.assert_array_equal(got, wanted)
    assert owner == child.pid
    np.testing.assert_array_equal(files.read(5, "a", 2), wanted)


def _read_in_child(files: OpenFiles, send) -> None:
    send.send((files.read(5, "a", 2), files._process))


def test_a_fork_while_a_thread_reads_does_not_hang(paths: list[Path]) -> None:
    files = OpenFiles(paths)
    with files._lock:  # as a prefetching thread of the parent would hold it
        receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(files, send))
        child.start()
    assert receive.poll(60), "the child hangs"
    np.testing.assert_array_equal(receive.recv()[0], plain(paths[5], "a", 2))
    child.join()


def test_threads_that_close_each_others_files(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_files, "MAX_OPEN_FILES", 2)
    files, wrong = OpenFiles(paths), []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            file, row = int(rng.integers(FILES)), int(rng.integers(9))
            if not np.array_equal(files.read(file, "a", row), expected[file][row]):
                wrong.append((file, row))

    expected = [np.stack([plain(path, "a", row) for row in range(9)]) for path in paths]
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_attributes_of_a_group_and_of_what_it_lies_in(paths: list[Path]) -> None:
    files = OpenFiles(paths)
    assert files.attribute(3, "b", "number") == 3
    assert files.attribute(3, "b", "robot") == "panda"
    assert files.attribute(3, "b", "other") is None
    assert files.attributes(3, "b") == {"robot": "panda", "number": 3}
    assert files.holds(0, "b/c")
    assert not files.holds(0, "b")


def test_what_cannot_be_read_names_file_and_data_set(paths: list[Path]) -> None:
    files = OpenFiles(paths)
    with pytest.raises(ValueError, match=r"2\.h5: 'b/x' cannot be read") as caught:
        files.read(2, "b/x")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"2\.h5: 'b' cannot be read \(it is a Group"):
        files.read(2, "b")
    paths[4].unlink()
    with pytest.raises(ValueError, match=r"4\.h5: no such file"):
        files.read(4, "a")
