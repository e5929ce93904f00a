"""Named transforms against values computed independently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mapping.transforms import (
    Motion,
    binarize_gripper,
    binarized,
    drop_first_step,
    relabel_from_next_state,
)


def backward_scan(opening: list[float]) -> list[float]:
    """Open X-Embodiment's rule as a plain loop."""
    carry = opening[-1]
    out = []
    for value in reversed(opening):
        if value > 0.95:
            carry = 1.0
        elif value < 0.05:
            carry = 0.0
        out.append(carry)
    return out[::-1]


@given(st.lists(st.sampled_from([0.0, 0.04, 0.05, 0.3, 0.7, 0.95, 0.96, 1.0]), min_size=1, max_size=12))
def test_binarized_follows_the_backward_scan(opening: list[float]) -> None:
    np.testing.assert_array_equal(binarized(np.array(opening)), backward_scan(opening))


def test_binarize_respects_the_robots_convention() -> None:
    robot = Embodiment.load("franka_panda")  # native -1 open, +1 closed
    action = np.zeros((4, 7), np.float32)
    action[:, 6] = [-1.0, 0.2, 0.1, 1.0]
    motion = binarize_gripper(Motion(action, None), robot)
    assert motion.action[:, 6].tolist() == [-1.0, 1.0, 1.0, 1.0]
    assert action[1, 6] == np.float32(0.2)


def test_drop_first_step() -> None:
    robot = Embodiment.load("widowx")
    motion = Motion(np.arange(21.0).reshape(3, 7), np.arange(21.0).reshape(3, 7) * 2)
    dropped = drop_first_step(motion, robot)
    np.testing.assert_array_equal(dropped.action, motion.action[1:])
    np.testing.assert_array_equal(dropped.state, motion.state[1:])
    assert drop_first_step(Motion(motion.action, None), robot).state is None


def test_relabel_reaches_the_next_state_and_is_not_an_euler_difference() -> None:
    robot = Embodiment.load("widowx")
    rng = np.random.default_rng(0)
    state = rng.uniform(-1.2, 1.2, size=(6, 7))
    action = rng.normal(size=(6, 7))
    motion = relabel_from_next_state(Motion(action, state), robot)
    assert len(motion.action) == len(motion.state) == 5
    np.testing.assert_allclose(state[:-1, :3] + motion.action[:, :3], state[1:, :3], atol=1e-12)
    reached = Rotation.from_euler("xyz", motion.action[:, 3:6]) * Rotation.from_euler("xyz", state[:-1, 3:6])
    np.testing.assert_allclose(
        reached.as_matrix(), Rotation.from_euler("xyz", state[1:, 3:6]).as_matrix(), atol=1e-9
    )
    assert np.abs(motion.action[:, 3:6] - np.diff(state[:, 3:6], axis=0)).max() > 0.1
    np.testing.assert_array_equal(motion.action[:, 6], action[:-1, 6])


def test_relabel_converts_units() -> None:
    robot = Embodiment.load(
        "franka_panda"
    )  # normalized action: 1 = 0.05 m, 0.5 rad; state in m and quaternions
    turn = Rotation.from_rotvec([[0, 0, 0], [0, 0, 0.25]]).as_quat()
    state = np.array([[0.1, 0, 0.2, *turn[0], 1], [0.125, 0, 0.2, *turn[1], 1]])
    motion = relabel_from_next_state(Motion(np.zeros((2, 7)), state), robot)
    np.testing.assert_allclose(motion.action, [[0.5, 0, 0, 0, 0, 0.5, 0]], atol=1e-9)


def test_relabel_needs_a_state() -> None:
    with pytest.raises(ValueError, match="needs a state"):
        relabel_from_next_state(Motion(np.zeros((2, 7)), None), Embodiment.load("widowx"))


def test_bridge_orig_is_the_raw_data_transformed(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "bridge_dataset"
    raw = open_dataset(folder, cache_dir=tmp_path)
    orig = open_dataset(folder, entry="bridge_orig", cache_dir=tmp_path)
    assert (orig.lengths == raw.lengths - 2).all()
    for before, after in zip(raw, orig, strict=True):
        assert len(after) == len(before) - 2
        np.testing.assert_array_equal(after.state, before.state[1:-1])
        np.testing.assert_allclose(after.action[:, :3], np.diff(before.state[1:, :3], axis=0), atol=1e-6)
        np.testing.assert_array_equal(after.action[:, 6], backward_scan(before.action[1:, 6].tolist())[:-1])
        np.testing.assert_array_equal(after.image(0), before.image(1))
        np.testing.assert_array_equal(after.image(len(after) - 1), before.image(len(before) - 2))
        with pytest.raises(ValueError, match="step"):
            after.image(len(after))
