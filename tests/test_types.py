"""The 32 slots are exactly those of the design."""

from __future__ import annotations

import pytest

from vla_adapt.types import NUM_SLOTS, SLOT_GROUPS, SLOT_NAMES, slot_group_of


def test_groups_tile_the_slots_without_gap_or_overlap() -> None:
    covered = [slot for group in SLOT_GROUPS.values() for slot in range(group.start, group.stop)]
    assert covered == list(range(NUM_SLOTS))


def test_places_other_programs_rely_on() -> None:
    places = {name: (group.start, group.stop) for name, group in SLOT_GROUPS.items()}
    assert places == {
        "right_ee_position_delta": (0, 3),
        "right_ee_rotation_delta": (3, 6),
        "right_gripper": (6, 7),
        "right_joints": (7, 14),
        "left_ee_position_delta": (14, 17),
        "left_ee_rotation_delta": (17, 20),
        "left_gripper": (20, 21),
        "left_joints": (21, 28),
        "base_velocity": (28, 31),
        "torso_lift": (31, 32),
    }


def test_slot_names_are_unique_and_readable() -> None:
    assert len(SLOT_NAMES) == len(set(SLOT_NAMES)) == NUM_SLOTS
    assert SLOT_NAMES[0] == "right_ee_position_delta.x"
    assert SLOT_NAMES[6] == "right_gripper"
    assert SLOT_NAMES[30] == "base_velocity.wz"


def test_every_group_has_one_unit_and_one_axis_per_slot() -> None:
    for group in SLOT_GROUPS.values():
        assert len(group.units) == len(group.axes) == len(group.slot_names) == group.size
    assert SLOT_GROUPS["base_velocity"].units == ("m/s", "m/s", "rad/s")


@pytest.mark.parametrize(
    ("slot", "name"), [(0, "right_ee_position_delta"), (13, "right_joints"), (31, "torso_lift")]
)
def test_slot_group_of(slot: int, name: str) -> None:
    assert slot_group_of(slot).name == name
