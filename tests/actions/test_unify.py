"""Unify: undo(do(x)) == x for every embodiment, masks that hold, and conversions checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.types import NUM_SLOTS, Layout, VectorKind

ROBOTS = {name: Embodiment.load(name) for name in Embodiment.available()}

TOOL = Embodiment.from_text("""
name: tool_arms
title: Two arms commanded in their tools' frames
rate_hz: 10
action:
  - {name: right_rotation, slots: right_ee_rotation_delta, rotation: euler_xyz, unit: deg, frame: tool}
  - {name: right_position, slots: right_ee_position_delta, unit: mm, frame: tool}
  - {name: left_position, slots: left_ee_position_delta, unit: m, frame: tool}
  - {name: joints, slots: left_joints, size: 6, unit: deg}
  - {name: lift, slots: torso_lift, unit: cm, limits: [0, 30]}
proprio:
  - {name: right, slots: right_ee_rotation_delta, rotation: quaternion_wxyz}
  - name: left
    slots: left_ee_rotation_delta
    rotation: axis_angle
    unit: deg
    reference_rpy_deg: [0, 0, 90]
cameras: {primary: {}}
""")

ONE_TOOL = Embodiment.from_text("""
name: tool_arm
title: One arm commanded in its tool's frame
rate_hz: 10
action: [{name: position, slots: right_ee_position_delta, unit: m, frame: tool}]
cameras: {primary: {}}
""")

CASES: list[tuple[str, VectorKind]] = [
    (name, kind) for name in ROBOTS for kind in ("action", "proprio") if ROBOTS[name].components(kind)
]
LAYOUTS: list[Layout] = ["slots", "padded"]


def _valid_component(component: Component, rng: np.random.Generator, count: int) -> np.ndarray:
    """Native numbers that the component may hold: within limits, without the ends where angles wrap."""
    if component.rotation in ("quaternion_xyzw", "quaternion_wxyz"):
        quaternion = Rotation.random(count, rng=rng).as_quat(canonical=True)
        return quaternion if component.rotation == "quaternion_xyzw" else np.roll(quaternion, 1, axis=-1)
    ends = np.array([2.0, 1.4, 2.0] if component.rotation == "euler_xyz" else [2.0] * component.native_size)
    ends = ends / np.abs(component.native_scale)
    low, high = -ends, ends
    if component.gripper is not None:
        low, high = np.sort([[component.gripper.open], [component.gripper.closed]], axis=0)
    if component.native_limits is not None:
        bounds = np.array(component.native_limits)
        low, high = np.maximum(low, bounds[:, 0]), np.minimum(high, bounds[:, 1])
    return rng.uniform(low, high, (count, component.native_size))


def _valid(embodiment: Embodiment, kind: VectorKind, seed: int, count: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [_valid_component(component, rng, count) for component in embodiment.components(kind)]
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_to_robot_undoes_to_unified(name: str, kind: VectorKind, layout: Layout, seed: int) -> None:
    unifier = ActionUnifier(ROBOTS[name], layout, kind)
    native = _valid(ROBOTS[name], kind, seed)
    values, mask = unifier.to_unified(native)
    assert values.shape == (len(native), NUM_SLOTS)
    assert np.array_equal(values[:, ~mask], np.zeros((len(native), (~mask).sum())))
    assert np.abs(unifier.to_robot(values) - native).max(initial=0) < 1e-6


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 7.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_masked_slots_never_reach_a_robot(
    name: str, kind: VectorKind, layout: Layout, garbage: float
) -> None:
    unifier = ActionUnifier(ROBOTS[name], layout, kind)
    values, mask = unifier.to_unified(_valid(ROBOTS[name], kind, seed=1))
    dirty = np.where(mask, values, garbage)
    assert np.array_equal(unifier.to_robot(dirty), unifier.to_robot(values))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_layouts_hold_the_same_numbers_in_other_places(name: str, kind: VectorKind) -> None:
    slots, padded = (ActionUnifier(ROBOTS[name], layout, kind) for layout in LAYOUTS)
    native = _valid(ROBOTS[name], kind, seed=2)
    count = len(slots.slots)
    assert padded.mask.tolist() == [True] * count + [False] * (NUM_SLOTS - count)
    in_slots, in_front = slots.to_unified(native)[0], padded.to_unified(native)[0]
    assert np.array_equal(in_slots[:, slots.slots], in_front[:, :count])
    assert list(padded.groups[:count]) == [slots.groups[slot] for slot in slots.slots]


@pytest.mark.parametrize("name", ROBOTS)
def test_vectorized_over_any_leading_shape(name: str) -> None:
    unifier = ActionUnifier(ROBOTS[name])
    native = _valid(ROBOTS[name], "action", seed=3, count=24)
    one_by_one = np.stack([unifier.to_unified(row)[0] for row in native])
    shaped, _ = unifier.to_unified(native.reshape(2, 3, 4, -1))
    assert np.allclose(shaped.reshape(24, NUM_SLOTS), one_by_one, atol=1e-15)
    assert unifier.to_robot(shaped).shape == (2, 3, 4, unifier.native_dim)
    assert unifier.to_unified(native[:0])[0].shape == (0, NUM_SLOTS)


@pytest.mark.parametrize("name", ROBOTS)
def test_float32_stays_float32_and_close(name: str) -> None:
    unifier = ActionUnifier(ROBOTS[name])
    native = _valid(ROBOTS[name], "action", seed=4).astype(np.float32)
    values, _ = unifier.to_unified(native)
    again = unifier.to_robot(values)
    assert values.dtype == again.dtype == np.float32
    assert np.abs(again - native).max() < 1e-5


def test_franka_numbers_by_hand() -> None:
    unifier = ActionUnifier(ROBOTS["franka_panda"])
    values, mask = unifier.to_unified([1.0, -0.5, 0.0, 0.2, 0.0, -1.0, -1.0])
    assert np.allclose(values[:7], [0.05, -0.025, 0.0, 0.1, 0.0, -0.5, 1.0])
    assert np.flatnonzero(mask).tolist() == list(range(7))


def test_bimanual_and_mobile_places() -> None:
    assert np.flatnonzero(ActionUnifier(ROBOTS["bimanual_panda"]).mask).tolist() == [
        *range(7),
        *range(14, 21),
    ]
    assert np.flatnonzero(ActionUnifier(ROBOTS["mobile_panda"]).mask).tolist() == [*range(7), 28, 29, 30]


def test_axis_angle_with_scale_is_exactly_linear() -> None:
    unifier = ActionUnifier(ROBOTS["franka_panda"])
    native = _valid(ROBOTS["franka_panda"], "action", seed=5)
    assert np.array_equal(unifier.to_unified(native)[0][:, 3:6], native[:, 3:6] * 0.5)


def test_widowx_euler_becomes_the_axis_angle_of_the_same_rotation() -> None:
    rpy = [0.3, -0.2, 0.5]
    values, _ = ActionUnifier(ROBOTS["widowx"]).to_unified([0.01, 0, 0, *rpy, 1.0])
    wanted = (
        Rotation.from_rotvec([0, 0, 0.5])
        * Rotation.from_rotvec([0, -0.2, 0])
        * Rotation.from_rotvec([0.3, 0, 0])
    )
    assert np.allclose(values[3:6], wanted.as_rotvec())
    assert not np.allclose(values[3:6], rpy, atol=1e-2)


def test_proprio_rotation_is_relative_to_the_reference() -> None:
    unifier = ActionUnifier(ROBOTS["ur5e"], kind="proprio")
    down = Rotation.from_euler("xyz", [180, 0, 90], degrees=True)
    pose = down * Rotation.from_rotvec([0.1, -0.2, 0.3])
    for sign in (1, -1):  # q and -q are one orientation
        values, _ = unifier.to_unified([0.4, 0.1, 0.2, *(sign * pose.as_quat()), 1.0])
        assert np.allclose(values[:7], [0.4, 0.1, 0.2, 0.1, -0.2, 0.3, 1.0])


def test_reference_that_is_not_its_own_inverse() -> None:
    unifier = ActionUnifier(TOOL, kind="proprio")
    pose = Rotation.from_euler("z", 90, degrees=True) * Rotation.from_rotvec([0.1, -0.2, 0.3])
    native = np.array([1.0, 0, 0, 0, *pose.as_rotvec(degrees=True)])
    values, _ = unifier.to_unified(native)
    assert np.allclose(values[17:20], [0.1, -0.2, 0.3])
    assert np.allclose(unifier.to_robot(values), native)


def test_to_robot_clips_to_limits_and_grippers_to_their_range() -> None:
    unifier = ActionUnifier(ROBOTS["franka_panda"])
    assert unifier.to_robot(np.full(NUM_SLOTS, 9.0)).tolist() == [1, 1, 1, 1, 1, 1, -1]
    assert unifier.to_robot(np.full(NUM_SLOTS, -9.0)).tolist() == [-1, -1, -1, -1, -1, -1, 1]
    assert ActionUnifier(ROBOTS["widowx"]).to_robot(np.full(NUM_SLOTS, -0.5))[6] == 0.0


def test_tool_frame_by_hand_and_round_trip() -> None:
    unifier = ActionUnifier(TOOL)
    assert unifier.needs_ee_rotation
    quarter = Rotation.from_euler("z", 90, degrees=True)
    native = np.array([10.0, 0, 0, 5.0, 0, 0, 0.1, 0, 0, 90, 0, 0, 0, 0, 0, 25.0])
    values, mask = unifier.to_unified(native, ee_rotation={"right": quarter, "left": np.eye(3)})
    assert np.allclose(values[3:6], [0, np.radians(10), 0])  # the tool's x axis is the base's y axis
    assert np.allclose(values[0:3], [0, 0.005, 0])
    assert np.allclose(values[14:17], [0.1, 0, 0])
    assert np.allclose([values[21], values[31]], [np.pi / 2, 0.25])
    assert not mask[27]
    assert np.allclose(unifier.to_robot(values, ee_rotation={"right": quarter, "left": np.eye(3)}), native)


@given(seed=st.integers(0, 2**31))
def test_tool_frame_round_trip_with_one_pose_per_step(seed: int) -> None:
    unifier = ActionUnifier(TOOL)
    native = _valid(TOOL, "action", seed, count=12).reshape(3, 4, -1)
    poses = {
        "right": Rotation.random(12, rng=seed).as_matrix().reshape(3, 4, 3, 3),
        "left": Rotation.random(4, rng=seed + 1).as_matrix(),  # one per horizon step, the same for all rows
    }
    values, _ = unifier.to_unified(native, poses)
    assert np.abs(unifier.to_robot(values, poses) - native).max() < 1e-6


def test_tool_frame_without_pose_is_refused() -> None:
    unifier = ActionUnifier(ONE_TOOL)
    with pytest.raises(ValueError, match="'position' is in the tool frame; pass ee_rotation"):
        unifier.to_unified(np.zeros(3))
    with pytest.raises(ValueError, match="pass ee_rotation, the right gripper's orientation"):
        unifier.to_robot(np.zeros(NUM_SLOTS))
    with pytest.raises(ValueError, match=r"ee_rotation has shape \[2, 3, 3\], wanted \[5, 3, 3\]"):
        unifier.to_unified(np.zeros((5, 3)), np.tile(np.eye(3), (2, 1, 1)))


def test_one_pose_for_two_tool_arms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pass ee_rotation as \{'right': ..., 'left': ...\}"):
        ActionUnifier(TOOL).to_unified(np.zeros(TOOL.action_dim), Rotation.identity())
    with pytest.raises(ValueError, match="the left gripper's orientation"):
        ActionUnifier(TOOL).to_unified(np.zeros(TOOL.action_dim), {"right": Rotation.identity()})


def test_scipy_rotations_are_taken_one_or_many() -> None:
    unifier = ActionUnifier(ONE_TOOL)
    native = np.arange(18.0).reshape(2, 3, 3)
    many = Rotation.random(6, rng=0)
    assert np.allclose(
        unifier.to_unified(native, many)[0][..., :3].reshape(6, 3), many.apply(native.reshape(6, 3))
    )
    assert np.allclose(
        unifier.to_unified(native, many[0])[0][..., :3], many[0].apply(native.reshape(6, 3)).reshape(2, 3, 3)
    )


def test_ee_rotations_of_a_state_feed_tool_frame_actions() -> None:
    state = np.array([[0.5, 0.5, 0.5, 0.5, 90, 0, 0]])
    poses = ActionUnifier(TOOL, kind="proprio").ee_rotations(state)
    assert np.allclose(poses["left"].as_rotvec(degrees=True), [[90, 0, 0]])
    assert np.allclose(poses["right"].as_rotvec(degrees=True), 120 / np.sqrt(3))
    ActionUnifier(TOOL).to_unified(np.zeros((1, TOOL.action_dim)), poses)
    with pytest.raises(ValueError, match="kind='proprio'"):
        ActionUnifier(TOOL).ee_rotations(state)


def test_wrong_width_and_nan_are_refused() -> None:
    unifier = ActionUnifier(ROBOTS["ur5e"])
    with pytest.raises(ValueError, match=r"ur5e: action has width 6 .* wanted 7: position 3"):
        unifier.to_unified(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"ur5e: action holds nan at index \[1, 2\]"):
        unifier.to_unified([[0.0] * 7, [0, 0, np.nan, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"shape \[2, 7\], wanted \[..., 32\]"):
        unifier.to_robot(np.zeros((2, 7)))


def test_nan_from_a_policy_never_becomes_a_robot_action() -> None:
    values = np.zeros(NUM_SLOTS)
    values[4] = np.nan
    with pytest.raises(ValueError, match=r"ur5e is not finite in slots \[4\]; refusing"):
        ActionUnifier(ROBOTS["ur5e"]).to_robot(values)


def test_unknown_layout_and_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown layout 'pad'; did you mean 'padded'\?"):
        ActionUnifier(ROBOTS["ur5e"], layout="pad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown kind 'actions'; did you mean 'action'\?"):
        ActionUnifier(ROBOTS["ur5e"], kind="actions")  # type: ignore[arg-type]


def test_mask_cannot_be_changed_by_a_caller() -> None:
    _, mask = ActionUnifier(ROBOTS["ur5e"]).to_unified(np.zeros(7))
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False


def test_robot_without_proprio_gives_an_empty_mask() -> None:
    unifier = ActionUnifier(ONE_TOOL, kind="proprio")
    values, mask = unifier.to_unified(np.zeros((4, 0)))
    assert values.shape == (4, NUM_SLOTS)
    assert not mask.any()
    assert unifier.to_robot(values).shape == (4, 0)


@pytest.mark.parametrize(("layout", "gone"), [("slots", [3, 4, 5, 6]), ("padded", [3, 4, 5, 6])])
def test_mask_without_what_a_dataset_does_not_record(layout: Layout, gone: list[int]) -> None:
    unifier = ActionUnifier(Embodiment.load("google_robot"), layout)
    mask = unifier.mask_without(("rotation", "gripper"))
    assert np.flatnonzero(unifier.mask & ~mask).tolist() == gone
    assert not (mask & ~unifier.mask).any()
    assert unifier.mask_without(()).tolist() == unifier.mask.tolist()


def test_mask_without_a_component_beyond_its_native_order() -> None:
    mask = ActionUnifier(Embodiment.load("aloha")).mask_without(("right_joints",))
    assert np.flatnonzero(mask).tolist() == [6, 20, 21, 22, 23, 24, 25, 26]
