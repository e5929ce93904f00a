"""Where derived files lie, and that they appear whole: also with several processes, for every format."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vla_adapt.episodes import DatasetEntry, open_dataset
from vla_adapt.episodes.storage.cache_folder import (
    BESIDE,
    CACHE_VARIABLE,
    cache_places,
    first_writable,
    one_at_a_time,
    publish,
)

ByHand = Callable[..., Any]


def test_places_in_order_of_preference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "bridge" / "1.0.0"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    beside, user = cache_places(data, None, "rlds")
    assert beside == data / BESIDE
    assert user.parent == tmp_path / "mine" / "rlds"
    assert user.name.startswith("bridge-")
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_places(data, None)[1].is_relative_to(Path.home() / ".cache" / "vla_adapt")
    assert cache_places(data, tmp_path / "given") == [tmp_path / "given" / "rlds" / user.name]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_places(data, "~/given") == cache_places(data, tmp_path / "given")
    assert cache_places(tmp_path / "other" / "1.0.0", None)[1].name != user.name


def test_the_first_writable_place_is_made(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    (tmp_path / "file").write_text("")
    assert (
        first_writable([locked / "a", tmp_path / "file" / "b", tmp_path / "c" / "d"]) == tmp_path / "c" / "d"
    )
    assert list((tmp_path / "c" / "d").iterdir()) == []
    with pytest.raises(ValueError, match=rf"no writable folder .*locked/a\); set {CACHE_VARIABLE}"):
        first_writable([locked / "a"])
    locked.chmod(0o755)


def test_published_whole_or_not_at_all(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        publish(tmp_path, "new", fails, valid=lambda folder: True)
    assert list(tmp_path.iterdir()) == []
    made = publish(tmp_path, "new", lambda folder: (folder / "x").write_text("1"), valid=lambda folder: True)
    assert (made / "x").read_text() == "1"


@pytest.mark.parametrize(("valid", "kept"), [(True, "first"), (False, "second")])
def test_what_another_published_is_kept_if_it_is_sound(tmp_path: Path, valid: bool, kept: str) -> None:
    publish(tmp_path, "new", lambda folder: (folder / "x").write_text("first"), valid=lambda folder: True)
    publish(tmp_path, "new", lambda folder: (folder / "x").write_text("second"), valid=lambda folder: valid)
    assert (tmp_path / "new" / "x").read_text() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_one_builds_while_others_wait(tmp_path: Path) -> None:
    order: list[str] = []
    entered = threading.Event()

    def wait() -> None:
        entered.wait(10)
        with one_at_a_time(tmp_path):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    with one_at_a_time(tmp_path):
        entered.set()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def lerobot(folder: Path) -> float:
    return float(
        sum(e.action.sum() for e in open_dataset(folder, embodiment="franka_panda", verify_images=True))
    )


HDF5_ENTRY = DatasetEntry(
    embodiment="franka_panda", cameras={}, action=("actions",), state=(), instruction=""
)


def hdf5(file: Path) -> float:
    return float(sum(episode.action.sum() for episode in open_dataset(file, entry=HDF5_ENTRY)))


def _meet(barrier: Any) -> None:
    global _BARRIER
    _BARRIER = barrier


def _read(job: tuple[Callable[[Path], float], Path]) -> float:
    _BARRIER.wait(20)
    return job[0](job[1])


def at_once(read: Callable[[Path], float], path: Path) -> list[float]:
    context = multiprocessing.get_context("fork")
    with context.Pool(3, initializer=_meet, initargs=(context.Barrier(3),)) as pool:
        return pool.map(_read, [(read, path)] * 3, chunksize=1)


def test_processes_may_index_lerobot_at_once(lerobot_by_hand: ByHand) -> None:
    made = lerobot_by_hand("v2.1", "image")
    sums = at_once(lerobot, made.path)
    assert len(set(sums)) == 1
    assert sums[0] == pytest.approx(made.action.sum(), rel=1e-5)
    kinds = sorted(path.name.split("-")[0] for path in (made.path / BESIDE).iterdir())
    assert kinds == ["crc", "steps"], "nothing else is left"


def test_processes_may_index_hdf5_at_once(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for demo in range(3):
            file.create_dataset(f"data/demo_{demo}/actions", data=actions)
    sums = at_once(hdf5, tmp_path / "demos.hdf5")
    assert len(set(sums)) == 1
    assert sums[0] == pytest.approx(3 * actions.sum(), rel=1e-5)
    assert len(list((tmp_path / BESIDE).iterdir())) == 1


def test_a_read_only_dataset_of_any_format_uses_the_cache_folder(
    lerobot_by_hand: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lerobot_by_hand("v2.1", "image")
    (tmp_path / "h").mkdir()
    with h5py.File(tmp_path / "h" / "demos.hdf5", "w") as file:
        file.create_dataset("data/demo_0/actions", data=np.zeros((4, 7)))
    for folder in (made.path, tmp_path / "h"):
        folder.chmod(0o555)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    lerobot(made.path)
    hdf5(tmp_path / "h" / "demos.hdf5")
    assert not (made.path / BESIDE).exists()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"lerobot", "hdf5"}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    for read, path in ((lerobot, made.path), (hdf5, tmp_path / "h" / "demos.hdf5")):
        with pytest.raises(ValueError, match=f"no writable folder for the step index .*set {CACHE_VARIABLE}"):
            read(path)
    for folder in (made.path, tmp_path / "h"):
        folder.chmod(0o755)
