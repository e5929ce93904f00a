"""Native robot vectors to the 32 unified slots and back: pad, mask, SI units, base frame, gripper 1 = open.

`to_unified` and `to_robot` are inverse on valid actions. Numbers that convert one by one (positions, joints,
grippers, velocities, axis-angle rotations) go through one affine map; other rotations and tool frames go
through SO(3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import decode_rotation, encode_rotation, reference_rotation
from vla_adapt.embodiment import Component, Embodiment, check_vector
from vla_adapt.suggest import did_you_mean
from vla_adapt.types import NUM_SLOTS, SlotGroup, VectorKind, slot_group_of
from vla_adapt.types import Layout as LayoutName

Pose = Rotation | Float[np.ndarray, "*batch 3 3"]


class _Part(NamedTuple):
    """A component that needs more than the affine map."""

    component: Component
    columns: slice
    positions: np.ndarray
    scale: np.ndarray


class ActionUnifier:
    """Converts between one robot's native vector and the unified slots.

    Args:
        embodiment: the robot.
        layout: `slots` puts numbers into their named slots; `padded` puts the same numbers at the front in
            native order (for comparison with "pad at the end" policies).
        kind: `action`, or `proprio` for the state vector (end-effector slots then hold the absolute pose).

    Attributes:
        mask: [32] bool, True where this robot has a number.
        slots: named slot (0..31) of each unified number, in native order.
        positions: where each of them lies in the 32; equal to `slots` in the `slots` layout.
        groups: slot group of each of the 32 positions, None where masked.
        needs_ee_rotation: whether conversion needs the gripper's measured orientation (a `tool` frame).
    """

    def __init__(
        self, embodiment: Embodiment, layout: LayoutName | str = "slots", kind: VectorKind | str = "action"
    ) -> None:
        for what, got, known in (
            ("layout", layout, ("slots", "padded")),
            ("kind", kind, ("action", "proprio")),
        ):
            if got not in known:
                raise ValueError(f"unknown {what} {got!r}; {did_you_mean(got, known)}")
        self.embodiment = embodiment
        self.layout: LayoutName = cast(LayoutName, layout)
        self.kind: VectorKind = cast(VectorKind, kind)
        components = embodiment.components(self.kind)
        self.native_dim = sum(component.native_size for component in components)
        self.slots = np.array([slot for c in components for slot in c.slot_indices], dtype=np.intp)
        self.positions = self.slots if layout == "slots" else np.arange(len(self.slots))
        self.mask: Bool[np.ndarray, 32] = np.zeros(NUM_SLOTS, dtype=bool)
        self.mask[self.positions] = True
        self.mask.setflags(write=False)
        groups: list[SlotGroup | None] = [None] * NUM_SLOTS
        for slot, position in zip(self.slots, self.positions, strict=True):
            groups[position] = slot_group_of(int(slot))
        self.groups = tuple(groups)
        self._build(components)

    @property
    def needs_ee_rotation(self) -> bool:
        """Whether a component is given in the tool frame."""
        return any(part.component.frame == "tool" for part in self._parts)

    def mask_without(self, omitted: Collection[str]) -> Bool[np.ndarray, 32]:
        """`mask`, False also where components named in `omitted` lie (a dataset did not record them)."""
        mask, taken = self.mask.copy(), 0
        for component in self.embodiment.components(self.kind):
            filled = len(component.slot_indices)
            if component.name in omitted:
                mask[self.positions[taken : taken + filled]] = False
            taken += filled
        return mask

    def to_unified(
        self, native: Any, ee_rotation: Pose | Mapping[str, Pose] | None = None
    ) -> tuple[Float[np.ndarray, "*batch 32"], Bool[np.ndarray, 32]]:
        """Native numbers `[..., D]` to (values [..., 32] in SI units and base frame, mask [32]).

        Args:
            native: finite numbers; float64 in gives float64 out, float32 gives float32.
            ee_rotation: for tool-frame components, the gripper's orientation in the base frame: a scipy
                Rotation or matrices [..., 3, 3] fitting the leading shape of `native`, or one per arm as
                {"right": ..., "left": ...}.

        Raises:
            ValueError: wrong width, NaN, a zero quaternion, or a tool frame without `ee_rotation`.
        """
        array = check_vector(self.embodiment, self.kind, native)
        flat = array.reshape(math.prod(array.shape[:-1]), self.native_dim).astype(np.float64)
        values = np.zeros((len(flat), NUM_SLOTS))
        values[:, self._to] = np.clip(flat[:, self._from] * self._gain + self._bias, self._low, self._high)
        for part in self._parts:
            component = part.component
            vectors = flat[:, part.columns] * part.scale
            if not component.is_linear:
                assert component.rotation is not None
                turn = decode_rotation(vectors, component.rotation)
                if component.reference_rpy_deg is not None:
                    turn = reference_rotation(component.reference_rpy_deg).inv() * turn
                vectors = turn.as_rotvec()
            if component.frame == "tool":
                vectors = self._pose(component, ee_rotation, array.shape[:-1]).apply(vectors)
            values[:, part.positions] = vectors
        return values.reshape(*array.shape[:-1], NUM_SLOTS).astype(_float_type(array), copy=False), self.mask

    def to_robot(
        self, values: Any, ee_rotation: Pose | Mapping[str, Pose] | None = None
    ) -> Float[np.ndarray, "*batch D"]:
        """Unified values `[..., 32]` to native numbers `[..., D]`, clipped to the declared limits.

        Masked slots are never read. Grippers are clipped to [0, 1] first.

        Raises:
            ValueError: not 32 wide, NaN in a slot this robot has, or a tool frame without `ee_rotation`.
        """
        array = np.asarray(values)
        if array.ndim == 0 or array.shape[-1] != NUM_SLOTS:
            raise ValueError(f"unified {self.kind} has shape {list(array.shape)}, wanted [..., {NUM_SLOTS}]")
        flat = array.reshape(-1, NUM_SLOTS)
        if not np.isfinite(flat[:, self.positions]).all():
            bad = self.positions[~np.isfinite(flat[:, self.positions]).all(axis=0)]
            raise ValueError(
                f"unified {self.kind} for {self.embodiment.name} is not finite in slots {bad.tolist()}; "
                "refusing to turn it into robot numbers"
            )
        native = np.empty((len(flat), self.native_dim))
        linear = np.clip(flat[:, self._to].astype(np.float64), self._low, self._high)
        native[:, self._from] = (linear - self._bias) / self._gain
        for part in self._parts:
            component = part.component
            vectors = flat[:, part.positions].astype(np.float64)
            if component.frame == "tool":
                vectors = self._pose(component, ee_rotation, array.shape[:-1]).apply(vectors, inverse=True)
            if not component.is_linear:
                assert component.rotation is not None
                turn = Rotation.from_rotvec(vectors)
                if component.reference_rpy_deg is not None:
                    turn = reference_rotation(component.reference_rpy_deg) * turn
                vectors = encode_rotation(turn, component.rotation)
            native[:, part.columns] = vectors / part.scale
        native = np.clip(native, *self._limits)
        return native.reshape(*array.shape[:-1], self.native_dim).astype(_float_type(array), copy=False)

    def ee_rotations(self, state: Any) -> dict[str, Rotation]:
        """Gripper orientations in the base frame read from native states `[..., P]`, by side.

        Only for `kind="proprio"`; what tool-frame actions of the same robot need as `ee_rotation`.
        """
        if self.kind != "proprio":
            raise ValueError("ee_rotations reads a state; make the unifier with kind='proprio'")
        flat = check_vector(self.embodiment, self.kind, state).reshape(-1, self.native_dim).astype(np.float64)
        turns: dict[str, Rotation] = {}
        start = 0
        for component in self.embodiment.proprio:
            columns = slice(start, start := start + component.native_size)
            if component.rotation is not None and len(component.slot_indices) == 3:
                vectors = flat[:, columns] * np.array(component.native_scale)
                turns[_side(component)] = decode_rotation(vectors, component.rotation)
        return turns

    def _build(self, components: tuple[Component, ...]) -> None:
        """Lay out the affine map (`_from` columns -> `_to` positions) and the parts beyond it."""
        columns: list[int] = []
        rows: list[tuple[int, float, float, float, float]] = []  # position, gain, bias, low, high
        limits: list[tuple[float, float]] = []
        parts: list[_Part] = []
        start = taken = 0
        for component in components:
            width, filled = component.native_size, len(component.slot_indices)
            positions, scale = self.positions[taken : taken + filled], component.native_scale
            limits += component.native_limits or [(-np.inf, np.inf)] * width
            if component.is_linear and component.frame == "base":
                columns += range(start, start + width)
                rows += [_affine(component, int(p), s) for p, s in zip(positions, scale, strict=True)]
            else:
                parts.append(_Part(component, slice(start, start + width), positions, np.array(scale)))
            start, taken = start + width, taken + filled
        self._from = np.array(columns, dtype=np.intp)
        table = np.array(rows, dtype=np.float64).reshape(-1, 5)
        self._to = table[:, 0].astype(np.intp)
        self._gain, self._bias, self._low, self._high = table[:, 1:].T
        self._limits = np.array(limits, dtype=np.float64).reshape(-1, 2).T
        self._parts = tuple(parts)

    def _pose(
        self, component: Component, given: Pose | Mapping[str, Pose] | None, batch: tuple[int, ...]
    ) -> Rotation:
        """The gripper's orientation for `component`, one per flattened row."""
        side = _side(component)
        pose = given.get(side) if isinstance(given, Mapping) else given
        where = f"{self.embodiment.name}: {self.kind} component {component.name!r} is in the tool frame"
        sides = {_side(part.component) for part in self._parts if part.component.frame == "tool"}
        if len(sides) > 1 and pose is not None and not isinstance(given, Mapping):
            raise ValueError(
                f"{where}, as the other arm's; pass ee_rotation as {{'right': ..., 'left': ...}}"
            )
        if pose is None:
            raise ValueError(f"{where}; pass ee_rotation, the {side} gripper's orientation in the base frame")
        matrices = pose.as_matrix() if isinstance(pose, Rotation) else np.asarray(pose, dtype=np.float64)
        if isinstance(pose, Rotation) and matrices.ndim == 3 and len(matrices) == math.prod(batch):
            return Rotation.from_matrix(matrices.reshape(-1, 3, 3))
        try:
            full = np.broadcast_to(matrices, (*batch, 3, 3))
        except ValueError:
            got, wanted = list(matrices.shape), [*batch, 3, 3]
            raise ValueError(
                f"{where}; ee_rotation has shape {got}, wanted {wanted} or broadcastable"
            ) from None
        return Rotation.from_matrix(full.reshape(-1, 3, 3))


def _affine(component: Component, position: int, scale: float) -> tuple[int, float, float, float, float]:
    """(position, gain, bias, low, high): unified = clip(native * gain + bias, low, high)."""
    if component.gripper is None:
        return position, scale, 0.0, -np.inf, np.inf
    span = component.gripper.open - component.gripper.closed
    return position, 1.0 / span, -component.gripper.closed / span, 0.0, 1.0


def _side(component: Component) -> str:
    return "left" if component.slots.startswith("left") else "right"


def _float_type(array: np.ndarray) -> type[np.floating[Any]]:
    return np.float64 if array.dtype == np.float64 else np.float32
