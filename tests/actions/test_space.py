"""The printed slot map tells which native number lands in which slot."""

from __future__ import annotations

import pytest

from vla_adapt.actions.space import describe
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.types import VectorKind


@pytest.mark.parametrize("kind", ["action", "proprio"])
@pytest.mark.parametrize("name", Embodiment.available())
def test_rows_cover_exactly_the_unifiers_slots(name: str, kind: VectorKind) -> None:
    embodiment = Embodiment.load(name)
    rows = describe(embodiment, kind)
    assert [row.slot for row in rows] == ActionUnifier(embodiment, kind=kind).slots.tolist()


def test_rows_of_an_action() -> None:
    rows = describe(Embodiment.load("mobile_panda"))
    assert rows[0]._asdict() == {
        "slot": 0,
        "slot_name": "right_ee_position_delta.x",
        "component": "position",
        "columns": "0",
        "unit": "normalized",
        "frame": "base",
        "scale": "0.05",
        "encoding": "",
    }
    assert rows[6].encoding == "open=-1 closed=1"
    assert (rows[-1].slot, rows[-1].columns) == (30, "9")


def test_rows_of_a_proprio_name_absolute_poses_and_whole_quaternions() -> None:
    row = describe(Embodiment.load("ur5e"), "proprio")[3]
    assert row.slot_name == "right_ee_rotation.x"
    assert row.columns == "3-6"
    assert row.encoding == "quaternion_xyzw relative to rpy 180 0 90 deg"


def test_euler_angles_are_shown_as_one_rotation() -> None:
    row = describe(Embodiment.load("widowx"))[4]
    assert (row.columns, row.unit, row.encoding) == ("3-5", "rad", "euler_xyz")
