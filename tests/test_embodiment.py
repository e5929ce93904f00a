"""Every shipped embodiment loads; every kind of wrong one is refused with a helpful line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.resources import embodiments_dir

NAMES = Embodiment.available()

GOOD = """
name: cart
title: A cart with a hand
rate_hz: 10
action:
  - {name: position, slots: right_ee_position_delta, unit: cm, frame: base, limits: [-5, 5]}
  - {name: rotation, slots: right_ee_rotation_delta, rotation: euler_xyz, unit: deg}
  - {name: hand, slots: right_gripper, gripper: {open: 255, closed: 0}}
  - {name: drive, slots: base_velocity, axes: [vx, wz], unit: [m/s, deg/s]}
cameras:
  primary: {}
  wrist: {required: false}
"""


def _error(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        Embodiment.from_text(text, "cart.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cart.yaml: ")
    return message


def test_the_robots_of_the_first_release_are_there() -> None:
    assert {"franka_panda", "ur5e", "bimanual_panda", "mobile_panda", "widowx"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_embodiment_loads_and_round_trips_through_text(name: str) -> None:
    embodiment = Embodiment.load(name)
    assert embodiment.name == name
    assert "primary" in embodiment.cameras
    assert Embodiment.from_text(embodiment.to_text()) == embodiment
    assert Embodiment.load(embodiments_dir() / f"{name}.yaml") == embodiment


@pytest.mark.parametrize(
    ("name", "action_dim", "proprio_dim"),
    [
        ("franka_panda", 7, 8),
        ("ur5e", 7, 8),
        ("bimanual_panda", 14, 16),
        ("mobile_panda", 10, 8),
        ("widowx", 7, 7),
    ],
)
def test_widths(name: str, action_dim: int, proprio_dim: int) -> None:
    embodiment = Embodiment.load(name)
    assert (embodiment.action_dim, embodiment.proprio_dim) == (action_dim, proprio_dim)


def test_component_properties() -> None:
    position, rotation, hand, drive = Embodiment.from_text(GOOD).action
    assert drive.slot_indices == (28, 30)
    assert np.allclose(drive.native_scale, (1.0, np.pi / 180))
    assert position.native_limits == ((-5, 5),) * 3
    assert position.native_scale == (0.01,) * 3
    assert not rotation.is_linear
    assert hand.native_scale == (1.0,)


def test_load_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert Embodiment.load(path).name == "cart"
    assert Embodiment.load(str(path)).name == "cart"


def test_unknown_robot_is_refused_with_the_near_name() -> None:
    with pytest.raises(ValueError, match=r"unknown robot 'ur5ee'; did you mean 'ur5e'\?"):
        Embodiment.load("ur5ee")
    with pytest.raises(ValueError, match="known: aloha, bimanual_panda, "):
        Embodiment.load("zzz")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no embodiment file .*nothing.yaml; give a built-in name"):
        Embodiment.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("rate_hz", "rate_hzz", "unknown key 'rate_hzz'; did you mean 'rate_hz'?"),
        ("unit: cm", "unitt: cm", "unknown key 'unitt' in action[0]; did you mean 'unit'?"),
        ("open: 255", "opne: 255", "unknown key 'opne' in action[2].gripper; did you mean 'open'?"),
        (
            "required: false",
            "requried: false",
            "unknown key 'requried' in cameras.wrist; did you mean 'required'?",
        ),
        (
            "slots: right_gripper",
            "slots: right_griper",
            "unknown slot group 'right_griper'; did you mean 'right_gripper'?",
        ),
        ("euler_xyz", "euler_zyx", "did you mean 'euler_xyz'?"),
        ("unit: cm", "unit: cn", "unknown unit 'cn'; known: cm, cm/s, deg"),
        ("unit: cm", "unit: deg", "measures angle, but right_ee_position_delta holds length (m)"),
        ("unit: cm, ", "", "missing `unit`"),
        ("unit: cm", "unit: normalized", "go together"),
        ("unit: cm", "unit: cm, scale: 2", "go together"),
        ("unit: cm", "unit: normalized, scale: 0", "scale must not be 0"),
        ("unit: cm", "unit: normalized, scale: [1, 2]", "got 2 entries of `scale`, wanted 1 or 3"),
        ("unit: cm", "unit: [cm, cm]", "got 2 entries of `unit`, wanted 1 or 3"),
        ("[-5, 5]", "[5, -5]", "must be [low, high] with low < high"),
        ("[-5, 5]", "[[-5, 5], [-5, 5]]", "got 2 pairs of limits"),
        ("closed: 0", "closed: 255", "open and closed are both 255"),
        (", gripper: {open: 255, closed: 0}", "", "right_gripper needs `gripper:"),
        ("rotation: euler_xyz, ", "", "needs `rotation`"),
        ("unit: deg", "unit: deg, size: 1", "must be axis_angle"),
        ("unit: cm", "unit: cm, size: 4", "size 4 does not fit"),
        ("unit: cm", "unit: cm, rotation: euler_xyz", "belong to rotation slots"),
        ("axes: [vx, wz]", "axes: [vx, vz]", "unknown axis 'vz' of base_velocity; known: vx, vy, wz"),
        ("axes: [vx, wz]", "axes: [vx, vx]", "must be one or more different names"),
        ("axes: [vx, wz]", "axes: [vx, wz], size: 2", "both size and axes"),
        ("axes: [vx, wz]", "axes: [vx, wz], frame: tool", "frame `tool` is for whole"),
        (
            "unit: deg",
            "unit: deg, reference_rpy_deg: [180, 0, 0]",
            "reference_rpy_deg is for proprio rotations",
        ),
        ("unit: cm", "unit: cm, command: delta", "`command` is for joints and the torso lift"),
        (
            "rate_hz: 10",
            "rate_hz: 10\nproprio: [{name: j, slots: right_joints, unit: rad, command: target}]",
            "'j' has a `command`; that is for actions",
        ),
        ("name: hand", "name: position", "component name position is used twice"),
        ("name: cart", "name: My Cart", "name: got 'My Cart'"),
        ("rate_hz: 10", "rate_hz: 0", "rate_hz: got 0"),
        ("rate_hz: 10", "rate_hz: .nan", "finite number"),
        (
            "rate_hz: 10",
            "rate_hz: 10\nproprio: [{name: p, slots: right_ee_position_delta, unit: m, frame: tool}]",
            "base frame",
        ),
    ],
)
def test_wrong_files_are_refused_in_one_helpful_line(old: str, new: str, wanted: str) -> None:
    assert old in GOOD
    assert wanted in _error(GOOD.replace(old, new))


def test_two_components_cannot_share_a_slot() -> None:
    text = GOOD.replace(
        "slots: base_velocity, axes: [vx, wz], unit: [m/s, deg/s]",
        "slots: right_ee_position_delta, size: 1, unit: m",
    )
    assert "slot 0 is used twice" in _error(text)


@pytest.mark.parametrize("name", NAMES)
def test_check_action_takes_actions_and_chunks(name: str) -> None:
    embodiment = Embodiment.load(name)
    assert embodiment.check_action([0] * embodiment.action_dim).dtype == np.float64
    chunk = np.zeros((2, 8, embodiment.action_dim), dtype=np.float32)
    assert embodiment.check_action(chunk) is chunk


def test_check_action_names_the_wanted_columns_on_a_wrong_width() -> None:
    with pytest.raises(
        ValueError, match=r"ur5e: action has width 6 \(shape \[3, 6\]\), wanted 7: position 3 \+ rotation 3"
    ):
        Embodiment.load("ur5e").check_action(np.zeros((3, 6)))
    with pytest.raises(ValueError, match="a single number, wanted 7"):
        Embodiment.load("ur5e").check_action(0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_action_refuses_numbers_that_are_not_finite(bad: float) -> None:
    action = np.zeros((4, 7))
    action[2, 5] = bad
    with pytest.raises(
        ValueError, match=r"ur5e: action holds .* at index \[2, 5\] \(1 of 28 numbers not finite\)"
    ):
        Embodiment.load("ur5e").check_action(action)


def test_check_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="wanted numbers"):
        Embodiment.load("ur5e").check_action(["a"] * 7)


def test_check_proprio() -> None:
    with pytest.raises(ValueError, match="ur5e: proprio has width 7"):
        Embodiment.load("ur5e").check_proprio(np.zeros(7))


def test_embodiments_are_frozen() -> None:
    component = Embodiment.load("ur5e").action[0]
    assert isinstance(component, Component)
    with pytest.raises(ValueError, match="frozen"):
        component.name = "other"  # type: ignore[misc]
