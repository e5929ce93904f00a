"""What is sent for components that no data records: the recipe's word, else the entries'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.training.robot_constants import omission_notes, robot_constants

ROBOT = Embodiment.load("franka")
FULL = ActionUnifier(ROBOT).mask
NO_GRIPPER = ActionUnifier(ROBOT).mask_without(["gripper"])


def dataset(folder: Path, name: str, **changes: Any) -> MappedDataset:
    """Data of a Franka whose gripper is not recorded; `changes` are of its entry."""
    data = replace(fake_data(ROBOT, np.random.default_rng(0), 4), state=None)
    with RldsWriter(folder, name, ROBOT) as writer:
        writer.add("train", data)
    parts = {"position": [0, 1, 2], "rotation": [3, 4, 5]}
    action = {part: {"field": "action", "columns": columns} for part, columns in parts.items()}
    entry = open_dataset(writer.path).entry.model_dump() | {"action": {**action, "gripper": "omit"}} | changes
    return open_dataset(writer.path, entry=type(open_dataset(writer.path).entry).model_validate(entry))


def test_the_recipe_goes_before_the_entry_which_goes_before_nothing(tmp_path: Path) -> None:
    silent, told = dataset(tmp_path, "silent"), dataset(tmp_path, "told", constants={"gripper": [1]})
    assert robot_constants(ROBOT, NO_GRIPPER, [silent, told], {}) == {"gripper": (1.0,)}
    assert robot_constants(ROBOT, NO_GRIPPER, [silent, told], {"gripper": [0.0]}) == {"gripper": [0.0]}
    with pytest.raises(ValueError, match=r"'franka': .* 'gripper' is in none .*policy\.constants"):
        robot_constants(ROBOT, NO_GRIPPER, [silent], {})


def test_what_other_data_records_is_learned(tmp_path: Path) -> None:
    told = dataset(tmp_path, "told", constants={"gripper": [1]})
    whole = MemoryDataset("whole", ROBOT, [fake_data(ROBOT, np.random.default_rng(0))])
    assert robot_constants(ROBOT, FULL, [told, whole], {}) == {}
    assert omission_notes([told, whole], {}, {}) == [
        "robot 'franka': action component 'gripper' is masked where it is not recorded (told) and learned "
        "from the rest"
    ]
    with pytest.raises(ValueError, match="'gripper' is in the training data and learned"):
        robot_constants(ROBOT, FULL, [told, whole], {"gripper": [1.0]})


def test_entries_that_disagree_or_do_not_fit(tmp_path: Path) -> None:
    one, other = (dataset(tmp_path, f"is_{n}", constants={"gripper": [n]}) for n in (0, 1))
    with pytest.raises(ValueError, match=r"is_0 and is_1 disagree .*\[0\.0\], \[1\.0\].*policy\.constants"):
        robot_constants(ROBOT, NO_GRIPPER, [one, other], {})
    again = open_dataset(one.path, entry=other.entry)
    with pytest.raises(ValueError, match="is_0 and is_0 disagree"):
        robot_constants(ROBOT, NO_GRIPPER, [one, again], {})
    assert robot_constants(ROBOT, NO_GRIPPER, [one, other], {"gripper": [1.0]}) == {"gripper": [1.0]}
    wide = dataset(tmp_path, "wide", constants={"gripper": [0, 1]})
    with pytest.raises(ValueError, match="'gripper': got 2 constant numbers, wanted 1"):
        robot_constants(ROBOT, NO_GRIPPER, [wide], {})


def test_what_is_masked_and_sent_is_said(tmp_path: Path) -> None:
    told = dataset(tmp_path, "told", constants={"gripper": [1]})
    part = "robot 'franka': action component 'gripper' is in none of its data"
    said = f"{part}: masked, and {{}} is sent for it ({{}})"
    sent = robot_constants(ROBOT, NO_GRIPPER, [told], {})
    assert omission_notes([told], sent, {}) == [said.format([1.0], "entry of told")]
    given = {"gripper": (0.0,)}
    assert omission_notes([told], given, given) == [said.format([0.0], "policy.constants")]
