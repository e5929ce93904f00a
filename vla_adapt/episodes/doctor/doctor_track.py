"""The action or state vectors of many steps, as stored and in unified slots; bad rows are NaN, not errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.types import SLOT_GROUPS, SLOT_NAMES, SlotKind, VectorKind, slot_group_of

ZERO_LENGTH = 1e-6


@dataclass(frozen=True)
class Track:
    """N steps of the `action` or the `proprio` vector, without what the dataset does not record.

    Attributes:
        kind: which vector.
        components: those recorded, in native order.
        slots: [K] slot number of each unified column.
        native: [N, D] as stored, infinities as NaN.
        unified: [N, K] SI units, base frame; NaN in rows that cannot be converted.
        zero: columns that are 0 by declaration: the robot cannot move that way.
    """

    kind: VectorKind
    components: tuple[Component, ...]
    slots: Int64[np.ndarray, " K"]
    native: Float[np.ndarray, "N D"]
    unified: Float[np.ndarray, "N K"]
    zero: frozenset[int] = frozenset()

    @property
    def names(self) -> list[str]:
        """Slot name of each unified column; in the state the end-effector slots hold poses, not deltas."""
        names = [SLOT_NAMES[slot] for slot in self.slots]
        return names if self.kind == "action" else [name.replace("_delta", "") for name in names]

    @property
    def kinds(self) -> list[SlotKind]:
        """What each unified column holds."""
        return [slot_group_of(int(slot)).kind for slot in self.slots]

    @cached_property
    def plain(self) -> Float[np.ndarray, "N D"]:
        """Native numbers one by one: in SI units, grippers as openings, rotations as they are encoded."""
        values = self.native.astype(np.float64)
        for component, columns in columns_of(self.components):
            if component.gripper is not None:
                closed, span = component.gripper.closed, component.gripper.open - component.gripper.closed
                values[:, columns] = (values[:, columns] - closed) / span
            else:
                values[:, columns] *= component.native_scale
        return values

    def rows(self, chosen: Bool[np.ndarray, " N"]) -> Track:
        """Some of the steps."""
        return dataclasses.replace(self, native=self.native[chosen], unified=self.unified[chosen])

    @property
    def plain_names(self) -> list[str]:
        """What to call each native number: its slot, or its component and place (quaternions)."""
        names, taken = [], 0
        for component in self.components:
            width, filled = component.native_size, len(component.slot_indices)
            slots = self.names[taken : taken + filled]
            names += slots if width == filled else [f"{component.name}[{i}]" for i in range(width)]
            taken += filled
        return names

    @property
    def plain_kinds(self) -> list[SlotKind]:
        """What each native number is part of."""
        return [part.group.kind for part in self.components for _ in range(part.native_size)]

    def group(self, name: str) -> Float[np.ndarray, "N F"] | None:
        """Unified columns of a whole slot group, or None when not all of its slots are filled."""
        group = SLOT_GROUPS[name]
        columns = [
            int(i) for slot in range(group.start, group.stop) for i in np.flatnonzero(self.slots == slot)
        ]
        return self.unified[:, columns] if len(columns) == group.size else None

    def part(self, slots: str) -> tuple[Component, Float[np.ndarray, "N F"]] | None:
        """The component that fills the slot group `slots` and its native columns, or None."""
        for component, columns in columns_of(self.components):
            if component.slots == slots:
                return component, self.native[:, columns]
        return None

    def openings(self) -> Iterator[tuple[str, Component, Float[np.ndarray, " N"]]]:
        """(slot name, component, opening by the declared convention, not clipped) of each gripper."""
        for component, columns in columns_of(self.components):
            if component.gripper is not None:
                yield component.slots, component, self.plain[:, columns.start]


class Tracker:
    """Makes tracks of one robot's episodes.

    Args:
        embodiment: the robot.
        kind: which vector.
        omits: components that the data does not record.
        zero: native columns that are 0 by declaration.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        kind: VectorKind,
        omits: Collection[str] = (),
        zero: Collection[int] = (),
    ):
        self.embodiment = embodiment
        self.kind: VectorKind = kind
        self._unifier = ActionUnifier(embodiment, kind=kind)
        self._poses = ActionUnifier(embodiment, kind="proprio") if embodiment.proprio else None
        every = embodiment.components(kind)
        self._kept = tuple(component for component in every if component.name not in omits)
        self._columns = [
            column
            for component, columns in columns_of(every)
            if component in self._kept
            for column in range(columns.start, columns.stop)
        ]
        slots = [slot for component in self._kept for slot in component.slot_indices]
        self._slots = np.array(slots, np.int64)
        self._zero = frozenset(place for place, column in enumerate(self._columns) if column in zero)

    def track(self, native: Float[np.ndarray, "N D"], state: Float[np.ndarray, "N P"] | None) -> Track:
        """Convert the rows that can be converted.

        Raises:
            ValueError: a wrong width.
        """
        good, safe = _convertible(native, self.embodiment.components(self.kind))
        unified = np.full((len(native), len(self._slots)), np.nan, np.float32)
        pose, needs_pose = None, self._unifier.needs_ee_rotation
        if needs_pose and state is not None and self._poses is not None:
            state_good, safe_state = _convertible(state, self.embodiment.proprio)
            good, pose = good & state_good, self._poses.ee_rotations(safe_state)
        if len(native) and (pose is not None or not needs_pose):
            values = self._unifier.to_unified(safe, pose)[0][:, self._slots]
            unified[good] = values[good]
        stored = native[:, self._columns]
        stored = np.where(np.isfinite(stored), stored, np.float32(np.nan))
        return Track(self.kind, self._kept, self._slots, stored, unified, self._zero)

    def merged(self, tracks: Sequence[Track]) -> Track:
        """All tracks, one after another."""
        empty = self.track(np.zeros((0, self._unifier.native_dim), np.float32), None)
        rows = [empty, *tracks]
        native, unified = (
            np.concatenate([getattr(row, key) for row in rows]) for key in ("native", "unified")
        )
        return dataclasses.replace(empty, native=native, unified=unified)


def columns_of(components: tuple[Component, ...]) -> Iterator[tuple[Component, slice]]:
    """Each component with its columns of the native vector."""
    start = 0
    for component in components:
        yield component, slice(start, start + component.native_size)
        start += component.native_size


def quaternion_lengths(track: Track) -> Iterator[tuple[str, Float[np.ndarray, " N"]]]:
    """(component name, length of its quaternion in each row) of every quaternion."""
    for component, columns in columns_of(track.components):
        if component.native_size == 4 and (component.rotation or "").startswith("quaternion"):
            yield component.name, np.linalg.norm(track.native[:, columns], axis=1)


def _convertible(
    native: Float[np.ndarray, "N D"], components: tuple[Component, ...]
) -> tuple[Bool[np.ndarray, " N"], Float[np.ndarray, "N D"]]:
    """Which rows are finite with quaternions of some length, and the rows with the others made harmless."""
    good = np.isfinite(native).all(axis=1)
    for component, columns in columns_of(components):
        if (component.rotation or "").startswith("quaternion"):
            good &= ~(np.linalg.norm(native[:, columns], axis=1) < ZERO_LENGTH)
    return good, np.where(good[:, None], native, np.float32(1)).astype(np.float32)
