"""Vectors put together from stored fields, against numbers worked out with numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.native_vector import NativeVector

RNG = np.random.default_rng(5)
STORED = {
    "action": RNG.uniform(-0.5, 0.5, (4, 7)).astype(np.float32),
    "target": RNG.uniform(-1, 1, (4, 7)).astype(np.float32),
    "pose": RNG.uniform(-1, 1, (4, 7)).astype(np.float32),
    "matrix": np.zeros((4, 4, 4), np.float32),
    "width": RNG.uniform(0, 0.08, 4).astype(np.float32),
    "count": np.arange(12).reshape(4, 3),
    "steps": RNG.normal(size=(4, 2)),
    "turn": RNG.normal(size=(4, 1)),
}
STORED["target"][:, 3:] /= np.linalg.norm(STORED["target"][:, 3:], axis=1, keepdims=True)
STORED["matrix"][:, :3, :3] = Rotation.random(4, random_state=1).as_matrix()
WIDTHS = {field: int(np.prod(values.shape[1:])) for field, values in STORED.items()}
SIX: dict[str, Any] = {
    "position": {"field": "action", "columns": [0, 1, 2]},
    "rotation": {"field": "action", "columns": [3, 4, 5]},
}
GRIPPER = {"field": "width", "open": 0.08, "closed": 0}


def vector(spec: Any, robot: str = "franka", kind: Any = "action") -> NativeVector:
    entry = DatasetEntry(embodiment=robot, cameras={}, action=spec)
    return NativeVector(Embodiment.load(robot), kind, entry.action, WIDTHS, "mine")


def read(spec: Any, robot: str = "franka", kind: Any = "action") -> np.ndarray:
    return vector(spec, robot, kind).read(STORED.__getitem__)


def turning(rotation: dict[str, Any]) -> dict[str, Any]:
    return {"position": SIX["position"], "rotation": rotation, "gripper": GRIPPER}


def test_fields_alone_are_passed_on_untouched() -> None:
    np.testing.assert_array_equal(read(["action"]), STORED["action"])
    np.testing.assert_array_equal(read(["count", "count", "width"])[:, :6], np.tile(STORED["count"], 2))


def test_columns_without_conversion_are_passed_on_untouched() -> None:
    got = read({**SIX, "gripper": {"field": "action", "columns": [6]}})
    np.testing.assert_array_equal(got, STORED["action"])
    explicit = {**SIX, "rotation": {**SIX["rotation"], "rotation": "euler_xyz"}}
    np.testing.assert_array_equal(read({**explicit, "gripper": GRIPPER})[:, :6], STORED["action"][:, :6])


def test_scale_sign_and_constant_zero() -> None:
    spec = {
        "position": {"field": "action", "columns": [2, 0, None], "scale": [1, -2, 5]},
        "rotation": "omit",
        "gripper": GRIPPER,
    }
    got = read(spec)
    a = STORED["action"]
    np.testing.assert_allclose(got[:, :3], np.column_stack([a[:, 2], -2 * a[:, 0], 0 * a[:, 0]]), rtol=1e-6)
    np.testing.assert_allclose(got[:, 6], STORED["width"] / 0.08, rtol=1e-6)
    assert vector(spec).omits == ("rotation",)
    assert (got[:, 3:6] == 0).all()


def test_rotation_goes_into_the_embodiments_encoding_and_unit() -> None:
    spec = turning({"field": "target", "columns": [3, 4, 5, 6], "rotation": "quaternion_wxyz"})
    turn = Rotation.from_quat(STORED["target"][:, [4, 5, 6, 3]])
    np.testing.assert_allclose(read(spec)[:, 3:6], turn.as_euler("xyz"), atol=1e-6)
    normalized = read({**spec, "gripper": {"field": "width", "open": 0, "closed": 0.08}}, "franka_panda")
    np.testing.assert_allclose(normalized[:, 3:6], turn.as_rotvec() / 0.5, atol=1e-5)
    np.testing.assert_allclose(
        normalized[:, 6], 2 * STORED["width"] / 0.08 - 1, atol=1e-6
    )  # -1 open, 1 closed


def test_scale_of_a_rotation_makes_radians() -> None:
    spec = turning({"field": "action", "columns": [3, 4, 5], "rotation": "axis_angle", "scale": 0.15})
    wanted = Rotation.from_rotvec(0.15 * STORED["action"][:, 3:6]).as_euler("xyz")
    np.testing.assert_allclose(read(spec)[:, 3:6], wanted, atol=1e-6)


def test_absolute_commands_become_steps_from_the_measured_pose() -> None:
    spec = {
        "position": {
            "field": "target",
            "columns": [0, 1, 2],
            "measured": {"field": "pose", "columns": [0, 1, 2]},
        },
        "rotation": {
            "field": "target",
            "columns": [3, 4, 5, 6],
            "rotation": "quaternion_xyzw",
            "measured": {"field": "pose", "columns": [3, 4, 5], "rotation": "euler_xyz"},
        },
        "gripper": GRIPPER,
    }
    got, pose, target = read(spec), STORED["pose"], STORED["target"]
    np.testing.assert_allclose(pose[:, :3] + got[:, :3], target[:, :3], atol=1e-6)
    reached = Rotation.from_euler("xyz", got[:, 3:6]) * Rotation.from_euler("xyz", pose[:, 3:6])
    np.testing.assert_allclose(reached.as_matrix(), Rotation.from_quat(target[:, 3:]).as_matrix(), atol=1e-6)


def test_differences_of_vectors_become_the_turn_they_amount_to() -> None:
    here = {"field": "pose", "columns": [3, 4, 5]}
    step = {"field": "action", "columns": [3, 4, 5], "rotation": "axis_angle", "added_to": here}
    got = read(turning(step))[:, 3:6]
    before, ahead = STORED["pose"][:, 3:6], STORED["pose"][:, 3:6] + STORED["action"][:, 3:6]
    reached = Rotation.from_euler("xyz", got) * Rotation.from_rotvec(before)
    np.testing.assert_allclose(reached.as_matrix(), Rotation.from_rotvec(ahead).as_matrix(), atol=1e-6)
    assert np.abs(got - Rotation.from_rotvec(STORED["action"][:, 3:6]).as_euler("xyz")).max() > 0.01


def test_state_with_a_matrix_and_omitted_parts() -> None:
    spec = {
        "position": {"field": "matrix", "columns": [3, 7, 11]},
        "orientation": {"field": "matrix", "columns": [0, 1, 2, 4, 5, 6, 8, 9, 10], "rotation": "matrix"},
        "gripper": "omit",
        "joints": "omit",
    }
    got = read(spec, kind="proprio")
    turn = Rotation.from_quat(got[:, 3:7]).as_matrix()
    np.testing.assert_allclose(turn, STORED["matrix"][:, :3, :3], atol=1e-6)
    assert vector(spec, kind="proprio").omits == ("gripper", "joints")
    whole = {**spec, "orientation": "omit"}
    np.testing.assert_allclose(read(whole, kind="proprio")[:, 3:7], [[0, 0, 0, 1]] * 4)


def test_several_sources_are_concatenated() -> None:
    spec = {**SIX, "gripper": "omit", "base_velocity": [{"field": "steps", "scale": 3}, {"field": "turn"}]}
    got = read(spec, "google_robot")[:, 7:]
    np.testing.assert_allclose(got, np.column_stack([3 * STORED["steps"], STORED["turn"]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (["count"], r"mine: action \(count\) has width 3, embodiment franka wants 7"),
        ({**SIX, "griper": GRIPPER}, "franka has no component 'griper'; did you mean 'gripper'?"),
        (SIX, "says nothing of component 'gripper' of franka; map it to a field, or write `gripper: omit`"),
        ({**SIX, "gripper": {"field": "count"}}, "component 'gripper': 'count' gives 3 numbers, wanted 1"),
        (
            {**SIX, "gripper": {"field": "count", "columns": [3]}},
            r"column 3 of 'count', which has 3 numbers \(0..2\)",
        ),
        (
            {**SIX, "rotation": {"field": "action", "columns": [3, 4, 5], "rotation": "quaternion_xyzw"}},
            "component 'rotation': 'action' gives 3 numbers, wanted 4",
        ),
        ({**SIX, "position": GRIPPER}, "component 'position': it is no gripper"),
        (
            {**SIX, "position": {"field": "count", "rotation": "matrix"}},
            "component 'position': it is no whole rotation",
        ),
        (
            {**SIX, "gripper": {"field": "width", "measured": {"field": "width"}}},
            "`measured` is for positions, rotations and joints",
        ),
        (
            {**SIX, "position": [{"field": "turn"}, {"field": "turn"}]},
            "its 2 sources give 2 numbers, wanted 3",
        ),
        (
            {**SIX, "gripper": [GRIPPER, GRIPPER]},
            "component 'gripper': conversions need one source, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(spec: Any, wanted: str) -> None:
    if isinstance(spec, dict) and "gripper" not in spec and "griper" not in spec and spec is not SIX:
        spec = {**spec, "gripper": GRIPPER}
    with pytest.raises(ValueError, match=wanted.replace("?", r"\?")) as caught:
        vector(spec)
    assert "\n" not in str(caught.value)
