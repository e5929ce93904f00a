"""Unified motion out of the unnamed file is what went in, bit for bit."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_episode
from vla_adapt.episodes.mixing.motion_store import MotionStore
from vla_adapt.episodes.windows import UnifiedMotion, unify_motion
from vla_adapt.types import Layout

LENGTHS = [np.array([5, 1, 9]), np.array([4, 7])]


def make(layout: Layout = "slots") -> tuple[MotionStore, dict[tuple[int, int], UnifiedMotion]]:
    unifiers, motions = [], {}
    for number, name in enumerate(("franka_panda", "mobile_panda")):
        robot, rng = Embodiment.load(name), np.random.default_rng(number)
        action = ActionUnifier(robot, layout)
        proprio = ActionUnifier(robot, layout, kind="proprio") if number == 0 else None
        unifiers.append((action, proprio))
        for i, length in enumerate(LENGTHS[number]):
            motions[number, i] = unify_motion(fake_episode(robot, rng, int(length), 4), action, proprio)
    return MotionStore(LENGTHS, unifiers), motions


def assert_same(a: UnifiedMotion | None, b: UnifiedMotion) -> None:
    assert a is not None
    for name in ("action", "action_mask", "proprio", "proprio_mask"):
        one, other = getattr(a, name), getattr(b, name)
        if other is None:
            assert one is None
        else:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("layout", ["slots", "padded"])
def test_round_trip(layout: Layout) -> None:
    store, motions = make(layout)
    assert all(store.get(*key) is None for key in motions)
    for key in reversed(motions):
        store.put(*key, motions[key])
    for key, motion in motions.items():
        assert_same(store.get(*key), motion)


def test_episodes_without_state_or_with_fewer_components() -> None:
    store, motions = make()
    whole = motions[0, 0]
    mask = whole.action_mask.copy()
    mask[np.flatnonzero(mask)[0]] = False
    fewer = replace(
        whole,
        action=np.where(mask, whole.action, np.float32(0)),
        action_mask=mask,
        proprio=None,
        proprio_mask=np.zeros(32, bool),
    )
    store.put(0, 0, fewer)
    assert_same(store.get(0, 0), fewer)


def test_forked_processes_share_it_and_pickled_ones_begin_anew() -> None:
    store, motions = make()
    child = multiprocessing.get_context("fork").Process(target=store.put, args=(1, 1, motions[1, 1]))
    child.start()
    child.join()
    assert_same(store.get(1, 1), motions[1, 1])
    other = pickle.loads(pickle.dumps(store))
    assert other.get(1, 1) is None
    other.put(1, 1, motions[1, 1])
    assert_same(other.get(1, 1), motions[1, 1])


def test_without_a_place_or_room_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, motions = make()
    assert store._file is not None
    store._file.close()
    store._file = open("/dev/full", "wb", buffering=0)  # type: ignore[assignment] # noqa: SIM115
    store.put(0, 1, motions[0, 1])
    assert store.get(0, 1) is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    nowhere, _ = make()
    nowhere.put(0, 1, motions[0, 1])
    assert nowhere.get(0, 1) is None


def test_the_file_holds_used_slots_only() -> None:
    store, motions = make()
    for key, motion in motions.items():
        store.put(*key, motion)
    robot = Embodiment.load("mobile_panda")
    assert int(store._ends[4] - store._ends[3]) == 68 + 4 * 7 * len(ActionUnifier(robot).positions)
