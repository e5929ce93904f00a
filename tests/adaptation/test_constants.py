"""Components that no data records: named, given constants that fit, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.constants import check_constants, put_constants, untrained_components
from vla_adapt.embodiment import Embodiment


@pytest.fixture
def robot() -> Embodiment:
    return Embodiment.load("ur5e")


def without(robot: Embodiment, *names: str) -> np.ndarray:
    return ActionUnifier(robot).mask_without(names)


def test_untrained_components_are_those_with_an_unmeasured_slot(robot: Embodiment):
    assert untrained_components(robot, without(robot)) == []
    assert untrained_components(robot, without(robot, "gripper", "position")) == ["position", "gripper"]
    partly = without(robot)
    partly[4] = False
    assert untrained_components(robot, partly) == ["rotation"]


def test_fitting_constants_pass(robot: Embodiment):
    check_constants(robot, without(robot), {})
    check_constants(robot, without(robot, "gripper"), {"gripper": (-1.0,)})
    check_constants(robot, without(robot, "gripper", "rotation"), {"gripper": (1.0,), "rotation": (0, 0, 0)})


@pytest.mark.parametrize(
    ("missing", "constants", "message"),
    [
        (
            "gripper",
            {},
            r"robot 'ur5e': action component 'gripper' is in none .*ur5e: \{gripper: \[",
        ),
        (
            "gripper",
            {"gripper": (1.0,), "griper": (1.0,)},
            "'griper' .*unknown; did you mean 'gripper'",
        ),
        ("gripper", {"gripper": (1.0,), "position": (0, 0, 0)}, "'position' is in the training data"),
        ("gripper", {"gripper": (1.0, 1.0)}, "'gripper': got 2 constant numbers, wanted 1"),
        ("gripper", {"gripper": (1.5,)}, r"'gripper': constant 1.5 is outside its limits \[-1, 1\]"),
        ("rotation", {"rotation": (0, float("nan"), 0)}, r"'rotation': constants .* must be finite"),
    ],
)
def test_what_does_not_fit_is_named(robot: Embodiment, missing: str, constants: dict, message: str):
    with pytest.raises(ValueError, match=message):
        check_constants(robot, without(robot, missing), constants)


def test_constants_replace_their_component_alone(robot: Embodiment):
    actions = np.arange(14, dtype=np.float32).reshape(2, 7)
    got = put_constants(robot, actions, {"rotation": (0.1, 0.2, 0.3), "gripper": (-1.0,)})
    np.testing.assert_array_equal(got[:, :3], actions[:, :3])
    np.testing.assert_allclose(got[:, 3:], [[0.1, 0.2, 0.3, -1.0]] * 2)
    assert actions[0, 6] == 6, "the caller's array is left alone"
    assert got.dtype == np.float32
