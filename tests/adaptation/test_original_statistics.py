"""Statistics in the original's form: its formula and ours give the same action, and misfits are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.original_statistics import (
    adopt_statistics,
    norm_stats_entry,
    passed_through,
    read_dataset_statistics,
)
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.norm_stats import unnormalize

ENTRY = {
    "action": {
        "q01": [-0.5, -0.4, -0.3, -0.2, -0.15, -0.1, 0.0],
        "q99": [0.45, 0.55, 0.35, 0.25, 0.2, 0.3, 1.0],
        "mask": [True] * 6 + [False],
        **{key: [0.1] * 7 for key in ("mean", "std", "min", "max")},
    },
    "num_transitions": 321,
}


def our_action(values: np.ndarray, statistics: Statistics, robot: Embodiment) -> np.ndarray:
    """Token values [D] to native numbers, as RobotPolicy does."""
    unified = np.zeros(32)
    unifier = ActionUnifier(robot)
    unified[np.flatnonzero(unifier.mask)] = values
    return unifier.to_robot(Normalizer(statistics, unifier.mask).denormalize(unified))


@pytest.mark.parametrize("name", ["widowx", "franka_panda", "sawyer"])
def test_adopted_statistics_act_as_the_originals(name: str):
    robot = Embodiment.load(name)
    statistics, adopted, _ = adopt_statistics(ENTRY, robot)
    assert statistics.count == 321
    gripper = robot.action[-1].gripper
    assert gripper is not None
    for seed in range(5):
        values = np.random.default_rng(seed).uniform(-1, 1, 7)
        wanted = unnormalize(values, ENTRY["action"])
        wanted[6] = gripper.closed + np.clip(wanted[6], 0, 1) * (gripper.open - gripper.closed)
        np.testing.assert_allclose(our_action(values, statistics, adopted), wanted, atol=1e-12)


def test_a_number_the_original_does_not_normalize_passes_unchanged():
    action = ENTRY["action"] | {"mask": [True, True, False, True, True, True, False]}
    statistics, robot, _ = adopt_statistics({"action": action}, Embodiment.load("franka_panda"))
    assert our_action(np.full(7, 0.7), statistics, robot)[2] == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["widowx", "ur5e", "bimanual_panda", "mobile_panda"])
def test_our_entry_comes_back_equal_and_acts_the_same(name: str):
    robot = Embodiment.load(name)
    unifier = ActionUnifier(robot)
    samples = np.random.default_rng(0).normal(0.1, 0.3, (50, 32))
    samples[:, 0] = samples[:, 7] = 0.25  # a dead dimension
    statistics = Statistics.from_samples(samples, unifier.mask)
    entry = json.loads(json.dumps(norm_stats_entry(statistics)))
    slots = np.flatnonzero(unifier.mask)
    grippers = [slot in (6, 20) for slot in slots]
    assert entry["action"]["mask"] == [not gripper for gripper in grippers]
    values = np.random.default_rng(1).uniform(-1, 1, len(slots))
    unified = np.zeros(32)
    unified[slots] = values
    ours = Normalizer(statistics).denormalize(unified)[slots]
    np.testing.assert_allclose(unnormalize(values, entry["action"]), ours, atol=1e-12)
    again, same_robot, notes = adopt_statistics(entry, robot)
    assert same_robot == robot
    assert notes == []
    np.testing.assert_allclose(Normalizer(again).denormalize(unified)[slots], ours, atol=1e-12)
    with pytest.raises(ValueError, match="name its own robot"):
        adopt_statistics(entry, Embodiment.load("mobile_base"))


def test_rotations_pass_through_and_the_notes_say_so():
    robot = Embodiment.load("widowx")
    adopted, notes = passed_through(robot)
    assert adopted.action[1].rotation == "axis_angle"
    assert adopted.proprio == robot.proprio
    assert notes == [
        "action component 'rotation' (euler_xyz in the base frame) passes through as the robot's own numbers"
    ]
    assert notes[0] in adopted.notes
    assert passed_through(Embodiment.load("franka_panda")) == (Embodiment.load("franka_panda"), [])


def test_quiet_numbers_and_missing_fields_are_said():
    action = {"q01": [0.1] * 6 + [0.0], "q99": [0.1] * 3 + [0.2] * 3 + [1.0], "mask": ENTRY["action"]["mask"]}
    statistics, robot, notes = adopt_statistics({"action": action}, Embodiment.load("widowx"))
    assert "right_ee_position_delta.x" in notes[-1]
    assert "next to no motion" in notes[-1]
    assert "mean, std, min, max missing" in notes[-2]
    assert abs(our_action(np.ones(7), statistics, robot)[0] - 0.1) <= 1.0001e-4


@pytest.mark.parametrize(
    ("robot", "change", "words"),
    [
        ("ur5e", {"q01": [0.0] * 6}, r"6 numbers in 'q01', but ur5e has 7 .*name the right robot"),
        ("widowx", {"q99": None}, r"none in 'q99'"),
        ("widowx", {"mask": [True] * 7}, r"number 6 is the gripper of widowx and its mask is true"),
        ("widowx", {"mask": "absent"}, r"number 6 is the gripper .*or there is no mask"),
        ("widowx", {"q01": [float("nan")] * 7}, "must be finite"),
        ("widowx", {"q01": [9.0] * 7}, "q01 <= q99"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(robot: str, change: dict, words: str):
    action = ENTRY["action"] | change
    if action["mask"] == "absent":
        del action["mask"]
    with pytest.raises(ValueError, match=words):
        adopt_statistics({"action": action}, Embodiment.load(robot))


def test_quaternions_and_another_order_are_refused():
    tree = Embodiment.load("widowx").model_dump(mode="json")
    turned = Embodiment.model_validate(tree | {"action": tree["action"][::-1]})
    tree["action"][1] |= {"rotation": "quaternion_xyzw", "unit": None}
    with pytest.raises(ValueError, match="'rotation' is quaternion_xyzw; the original predicts one number"):
        adopt_statistics(ENTRY, Embodiment.model_validate(tree))
    with pytest.raises(ValueError, match="out of slot order"):
        adopt_statistics(ENTRY, turned)


def test_reading_the_file(tmp_path: Path):
    file = tmp_path / "dataset_statistics.json"
    with pytest.raises(ValueError, match=r"no statistics file .*finetune\.py writes"):
        read_dataset_statistics(file)
    for text, words in (("{", "not valid JSON"), ("[1]", "wanted"), ('{"a": {"q01": []}}', "wanted")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_dataset_statistics(file)
    for tree in ({"ds": ENTRY}, {"norm_stats": {"ds": ENTRY}}):
        file.write_text(json.dumps(tree))
        assert read_dataset_statistics(file) == {"ds": ENTRY}
