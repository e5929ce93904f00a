"""One kind of robot as data: its action and proprio components, cameras and control rate, read from YAML.

A *component* is a run of neighboring native numbers that fill slots of one group (see `vla_adapt.types`).
Components are listed in the order of the robot's own action (or state) vector, without gaps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vla_adapt.resources import embodiments_dir
from vla_adapt.suggest import did_you_mean, load_yaml_model
from vla_adapt.types import SLOT_GROUPS, SlotGroup, VectorKind

RotationEncoding = Literal["axis_angle", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz"]

# Unit -> (what it measures, factor to SI).
UNITS: dict[str, tuple[str, float]] = {
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
    "m/s": ("speed", 1.0),
    "cm/s": ("speed", 0.01),
    "mm/s": ("speed", 0.001),
    "rad/s": ("turn rate", 1.0),
    "deg/s": ("turn rate", math.pi / 180),
    "normalized": ("anything", 1.0),
}

_QUATERNIONS = ("quaternion_xyzw", "quaternion_wxyz")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GripperRange(_Strict):
    """Native numbers of the fully open and the fully closed gripper; unified is 1 open, 0 closed."""

    open: float
    closed: float

    @model_validator(mode="after")
    def _differ(self) -> GripperRange:
        if self.open == self.closed:
            raise ValueError(f"gripper open and closed are both {self.open}; give two different numbers")
        return self


class Camera(_Strict):
    """A camera by its role (`primary`, `wrist`, ...).

    A dataset may lack any. The doctor tells of a required one that is not there, and where windows hold
    several cameras it is never made up as a black image.
    """

    required: bool = True
    description: str = ""


class Component(_Strict):
    """Neighboring native numbers that fill slots of one group.

    Attributes:
        name: unique within the vector, e.g. `arm_position`.
        slots: slot group to fill. In the proprio the end-effector groups hold absolute poses.
        size: how many slots are filled, from the first on (default the whole group); joints often need fewer.
        axes: instead of `size`, the names of the slots filled, e.g. `[vx, wz]` for a differential drive.
        unit: unit of the native numbers, or one per number. `normalized` needs `scale`. None for
            grippers and quaternions.
        scale: native * scale = SI, a number or one per native number; only with unit `normalized`.
        rotation: how native numbers encode a rotation (only rotation groups, where it is required).
            `euler_xyz` is roll, pitch, yaw with R = Rz(yaw) Ry(pitch) Rx(roll), scipy's extrinsic "xyz".
        frame: `base` (the arm's own base) or `tool` (the gripper's; needs the measured pose to convert).
        reference_rpy_deg: proprio rotations are stored as axis-angle of R_ref^T R, so that the usual
            gripper pose is not at the singularity (pi). Roll, pitch, yaw of R_ref in degrees.
        gripper: native numbers of open and closed; required for gripper groups.
        limits: [low, high] in native numbers, for all or one pair per number; `to_robot` clips to it.
        command: whether an action's joint or lift numbers are a `target` (where to go) or a `delta` (how far
            from here). Only `stride` of a mixture asks; None: not said.
    """

    name: str = Field(min_length=1)
    slots: str
    size: int | None = Field(default=None, ge=1)
    axes: tuple[str, ...] | None = None
    unit: str | tuple[str, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    rotation: RotationEncoding | None = None
    frame: Literal["base", "tool"] = "base"
    reference_rpy_deg: tuple[float, float, float] | None = None
    gripper: GripperRange | None = None
    limits: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    command: Literal["target", "delta"] | None = None

    @property
    def group(self) -> SlotGroup:
        """The slot group this component fills."""
        return SLOT_GROUPS[self.slots]

    @property
    def slot_indices(self) -> tuple[int, ...]:
        """Numbers (0..31) of the slots filled, in native order."""
        group = self.group
        if self.axes is not None:
            return tuple(group.start + group.axes.index(axis) for axis in self.axes)
        return tuple(range(group.start, group.start + (self.size or group.size)))

    @property
    def native_size(self) -> int:
        """How many native numbers the component takes."""
        return 4 if self.rotation in _QUATERNIONS else len(self.slot_indices)

    @property
    def native_units(self) -> tuple[str, ...]:
        """Unit of each native number; empty strings where there is none."""
        if isinstance(self.unit, tuple):
            return self.unit
        return (self.unit or "",) * self.native_size

    @property
    def native_scale(self) -> tuple[float, ...]:
        """Factor of each native number to SI (1 for grippers and quaternions, which convert otherwise)."""
        if self.gripper is not None:
            return (1.0,) * self.native_size
        factors = tuple(UNITS[unit][1] if unit else 1.0 for unit in self.native_units)
        scale = self.scale if isinstance(self.scale, tuple) else (self.scale or 1.0,) * self.native_size
        return tuple(factor * extra for factor, extra in zip(factors, scale, strict=True))

    @property
    def native_limits(self) -> tuple[tuple[float, float], ...] | None:
        """(low, high) of each native number, or None."""
        if self.limits is None:
            return None
        if isinstance(self.limits[0], tuple):
            return self.limits  # type: ignore[return-value]
        return (self.limits,) * self.native_size  # type: ignore[return-value]

    @property
    def is_linear(self) -> bool:
        """Whether base-frame native numbers convert one by one, without rotation maths."""
        return self.rotation in (None, "axis_angle") and self.reference_rpy_deg is None

    @field_validator("slots")
    @classmethod
    def _known_slots(cls, value: str) -> str:
        if value not in SLOT_GROUPS:
            raise ValueError(f"unknown slot group {value!r}; {did_you_mean(value, SLOT_GROUPS)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Component:
        for check in (self._slot_problem, self._rotation_problem, self._unit_problem, self._limit_problem):
            if problem := check():
                raise ValueError(f"component {self.name!r}: {problem}")
        return self

    def _slot_problem(self) -> str | None:
        group = self.group
        if self.axes is not None:
            if self.size is not None:
                return "got both size and axes; give one of them"
            unknown = [axis for axis in self.axes if axis not in group.axes]
            if unknown:
                return f"unknown axis {unknown[0]!r} of {group.name}; {did_you_mean(unknown[0], group.axes)}"
            if not self.axes or len(set(self.axes)) < len(self.axes):
                return f"axes {list(self.axes)} must be one or more different names"
        elif self.size is not None and self.size > group.size:
            return f"size {self.size} does not fit {group.name}, which has {group.size} slots"
        if (self.gripper is not None) != (group.kind == "gripper"):
            wanted = "needs" if group.kind == "gripper" else "takes no"
            return f"{group.name} {wanted} `gripper: {{open: ..., closed: ...}}`"
        if self.command is not None and group.kind not in ("joints", "lift"):
            return f"`command` is for joints and the torso lift, {group.name} means what its slots say"
        return None

    def _rotation_problem(self) -> str | None:
        group = self.group
        whole = len(self.slot_indices) == 3 and self.axes is None
        if group.kind != "rotation":
            if self.rotation or self.reference_rpy_deg:
                return f"`rotation` and `reference_rpy_deg` belong to rotation slots, not to {group.name}"
        elif self.rotation is None:
            return f"{group.name} needs `rotation`: axis_angle, euler_xyz, quaternion_xyzw or quaternion_wxyz"
        elif not whole and not self.is_linear:
            return "a rotation that fills only some of the slots must be axis_angle without reference_rpy_deg"
        if self.frame == "tool" and (group.kind not in ("position", "rotation") or not whole):
            return "frame `tool` is for whole end-effector positions and rotations (x, y, z)"
        return None

    def _unit_problem(self) -> str | None:
        scales = self.scale if isinstance(self.scale, tuple) else (1.0 if self.scale is None else self.scale,)
        if self.gripper is not None or self.rotation in _QUATERNIONS:
            idle = self.unit is not None or self.scale is not None
            return (
                "`unit` and `scale` have no effect on grippers and quaternions; leave them out"
                if idle
                else None
            )
        if self.unit is None:
            return f"missing `unit`; one of {', '.join(UNITS)}"
        for what, given in (("unit", self.unit), ("scale", self.scale)):
            if isinstance(given, tuple) and len(given) != self.native_size:
                return f"got {len(given)} entries of `{what}`, wanted 1 or {self.native_size}"
        for unit, slot in zip(self.native_units, self.slot_indices, strict=True):
            if unit not in UNITS:
                return f"unknown unit {unit!r}; {did_you_mean(unit, UNITS)}"
            si = self.group.units[slot - self.group.start]
            if UNITS[unit][0] not in ("anything", UNITS[si][0]):
                return (
                    f"unit {unit!r} measures {UNITS[unit][0]}, but {self.slots} holds {UNITS[si][0]} ({si})"
                )
        if ("normalized" in self.native_units) != (self.scale is not None):
            return (
                "unit `normalized` and `scale` (native * scale = SI) go together; other units take no scale"
            )
        if 0.0 in scales:
            return "scale must not be 0"
        return None

    def _limit_problem(self) -> str | None:
        if self.limits is None:
            return None
        pairs = self.native_limits
        assert pairs is not None
        if len(pairs) != self.native_size:
            return f"got {len(pairs)} pairs of limits, wanted one [low, high] or {self.native_size} of them"
        bad = [pair for pair in pairs if pair[0] >= pair[1]]
        return f"limits {list(bad[0])} must be [low, high] with low < high" if bad else None


class Embodiment(_Strict):
    """One kind of robot.

    Attributes:
        name: short name used in files, URLs and recipes: lower-case letters, digits, `_`.
        title: what a person calls it.
        rate_hz: control rate of the actions.
        action: components of the native action vector, in its order.
        proprio: components of the native state vector, in its order; may be empty.
        cameras: role -> camera.
        notes: free text for people.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    rate_hz: float = Field(gt=0)
    action: tuple[Component, ...] = Field(min_length=1)
    proprio: tuple[Component, ...] = ()
    cameras: dict[str, Camera] = Field(min_length=1)
    notes: str = ""

    @property
    def action_dim(self) -> int:
        """Width of the native action vector."""
        return sum(component.native_size for component in self.action)

    @property
    def proprio_dim(self) -> int:
        """Width of the native state vector; 0 when the robot gives none."""
        return sum(component.native_size for component in self.proprio)

    def components(self, kind: VectorKind) -> tuple[Component, ...]:
        """Components of the `action` or of the `proprio` vector."""
        return self.action if kind == "action" else self.proprio

    @staticmethod
    def available() -> list[str]:
        """Names of the built-in embodiments."""
        return sorted(path.stem for path in embodiments_dir().glob("*.yaml"))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Embodiment:
        """Load a built-in embodiment by name, or any by the path of its YAML file.

        Raises:
            ValueError: unknown name (with the near one), missing file or invalid content.
        """
        text = str(name_or_path)
        is_path = isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml"))
        path = Path(name_or_path) if is_path else embodiments_dir() / f"{text}.yaml"
        if not is_path and text not in cls.available():
            near = did_you_mean(text, cls.available())
            raise ValueError(f"unknown robot {text!r}; {near} (or give the path of a YAML file)")
        if not path.is_file():
            raise ValueError(f"no embodiment file {path}; give a built-in name: {', '.join(cls.available())}")
        return cls.from_text(path.read_text(encoding="utf-8"), where=str(path) if is_path else path.name)

    @classmethod
    def from_text(cls, text: str, where: str = "embodiment") -> Embodiment:
        """Read an embodiment from YAML text; `where` names the text in errors."""
        return load_yaml_model(cls, text, where)

    def to_text(self) -> str:
        """YAML text that `from_text` reads back to an equal embodiment."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    def check_action(self, action: Any) -> np.ndarray:
        """Check a native action or chunk `[..., D]` and return it as an array.

        Raises:
            ValueError: wrong width, NaN or infinite.
        """
        return check_vector(self, "action", action)

    def check_proprio(self, proprio: Any) -> np.ndarray:
        """Check a native state or a run of them `[..., P]`; raises as `check_action`."""
        return check_vector(self, "proprio", proprio)

    @model_validator(mode="after")
    def _vectors_make_sense(self) -> Embodiment:
        for kind, components in (("action", self.action), ("proprio", self.proprio)):
            names = [component.name for component in components]
            slots = [slot for component in components for slot in component.slot_indices]
            for what, given in (("component name", names), ("slot", slots)):
                twice = sorted({str(x) for x in given if given.count(x) > 1})  # type: ignore[arg-type]
                if twice:
                    raise ValueError(f"{kind}: {what} {twice[0]} is used twice")
        for component in self.action:
            if component.reference_rpy_deg is not None:
                raise ValueError(f"action: {component.name!r}: reference_rpy_deg is for proprio rotations")
        for component in self.proprio:
            if component.command is not None:
                raise ValueError(f"proprio: {component.name!r} has a `command`; that is for actions")
            if component.frame == "tool":
                raise ValueError(
                    f"proprio: {component.name!r} has frame tool; states are given in the base frame"
                )
        return self


def check_vector(embodiment: Embodiment, kind: VectorKind, vector: Any) -> np.ndarray:
    """Check width and finiteness of native numbers `[..., D]`; returns them as a float array."""
    array = np.asarray(vector)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{embodiment.name}: {kind} has dtype {array.dtype}, wanted numbers")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    width = embodiment.action_dim if kind == "action" else embodiment.proprio_dim
    if array.ndim == 0 or array.shape[-1] != width:
        got = f"width {array.shape[-1]} (shape {list(array.shape)})" if array.ndim else "a single number"
        wanted = " + ".join(f"{part.name} {part.native_size}" for part in embodiment.components(kind))
        raise ValueError(f"{embodiment.name}: {kind} has {got}, wanted {width}: {wanted or 'it gives none'}")
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{embodiment.name}: {kind} holds {array[where]} at index {list(where)} "
            f"({int((~finite).sum())} of {array.size} numbers not finite); wanted finite numbers"
        )
    return array
