"""The 32 slots of a unified action, and the legend of the shape letters used in annotations.

Shape letters: B batch, T time or text length, H horizon (actions per chunk), S slots (32), F features,
C cameras, D native action width, P native proprio width, N samples.

A unified vector is `values [..., 32]` plus `mask [32]`: every robot's numbers laid into the same named slots;
slots that a robot lacks are zero and masked. The same 32 slots hold the *action* (where the end-effector
slots are deltas) and the *proprio* (where they are absolute poses). A single arm is the right arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NUM_SLOTS = 32

SlotKind = Literal["position", "rotation", "gripper", "joints", "velocity", "lift"]
VectorKind = Literal["action", "proprio"]
Layout = Literal["slots", "padded"]


@dataclass(frozen=True)
class SlotGroup:
    """A run of neighboring slots with one meaning.

    `unit` is the SI unit the slots hold; where the axes differ (base velocity) it has one word per axis.
    """

    name: str
    start: int
    size: int
    unit: str
    kind: SlotKind
    axes: tuple[str, ...]

    @property
    def stop(self) -> int:
        """First slot after the group."""
        return self.start + self.size

    @property
    def units(self) -> tuple[str, ...]:
        """SI unit of each slot."""
        words = tuple(self.unit.split())
        return words if len(words) == self.size else words * self.size

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Name of each slot, e.g. `right_ee_position_delta.x`; a lone slot bears the group's name."""
        return tuple(f"{self.name}.{axis}" for axis in self.axes) if self.size > 1 else (self.name,)


_XYZ = ("x", "y", "z")
_JOINTS = tuple(f"j{i}" for i in range(1, 8))

SLOT_GROUPS: dict[str, SlotGroup] = {
    group.name: group
    for group in (
        SlotGroup("right_ee_position_delta", 0, 3, "m", "position", _XYZ),
        SlotGroup("right_ee_rotation_delta", 3, 3, "rad", "rotation", _XYZ),
        SlotGroup("right_gripper", 6, 1, "opening", "gripper", ("open",)),
        SlotGroup("right_joints", 7, 7, "rad", "joints", _JOINTS),
        SlotGroup("left_ee_position_delta", 14, 3, "m", "position", _XYZ),
        SlotGroup("left_ee_rotation_delta", 17, 3, "rad", "rotation", _XYZ),
        SlotGroup("left_gripper", 20, 1, "opening", "gripper", ("open",)),
        SlotGroup("left_joints", 21, 7, "rad", "joints", _JOINTS),
        SlotGroup("base_velocity", 28, 3, "m/s m/s rad/s", "velocity", ("vx", "vy", "wz")),
        SlotGroup("torso_lift", 31, 1, "m", "lift", ("lift",)),
    )
}

SLOT_NAMES: tuple[str, ...] = tuple(name for group in SLOT_GROUPS.values() for name in group.slot_names)


def slot_group_of(slot: int) -> SlotGroup:
    """The group that slot number `slot` (0..31) belongs to."""
    assert 0 <= slot < NUM_SLOTS, slot
    return next(group for group in SLOT_GROUPS.values() if group.start <= slot < group.stop)
