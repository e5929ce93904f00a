"""Put a robot's native action or state vector together from stored fields, as a `DatasetEntry` says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import encode_rotation, rotation_between
from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.episodes.mapping.entry import Measured, Source, fields_of
from vla_adapt.episodes.mapping.gripper_commands import absolute_opening, binarized, opening_of
from vla_adapt.episodes.mapping.stored_rotation import decode_stored, stored_width
from vla_adapt.suggest import did_you_mean
from vla_adapt.types import VectorKind

Spec = tuple[str, ...] | dict[str, tuple[Source, ...]]
# Field name -> its numbers [T, ...] over an episode.
Numbers = Callable[[str], Shaped[np.ndarray, "T ..."]]


class NativeVector:
    """How one native vector comes from stored fields.

    Args:
        embodiment: the robot.
        kind: which of its vectors.
        spec: `DatasetEntry.action` or `.state`.
        widths: numbers per step of every number field there is.
        where: what to call the dataset in errors.

    Attributes:
        fields: the stored fields it reads.
        omits: names of the components that the dataset does not record.

    Raises:
        ValueError: an unknown or unmapped component, a column or width that does not fit.
    """

    def __init__(
        self, embodiment: Embodiment, kind: VectorKind, spec: Spec, widths: Mapping[str, int], where: str
    ):
        self._components = embodiment.components(kind)
        self._spec, self._where = spec, f"{where}: {'action' if kind == 'action' else 'state'}"
        self._robot = embodiment.name
        self.fields, self.omits = fields_of(spec), ()
        if isinstance(spec, dict):
            self.omits = tuple(name for name, parts in spec.items() if not parts)
            self._check_components(spec, widths)
        elif spec:
            self._check_width(widths)

    @property
    def width(self) -> int:
        """Numbers per step."""
        return sum(component.native_size for component in self._components)

    @property
    def recorded(self) -> bool:
        """Whether the dataset records any of it."""
        return bool(self.fields)

    def columns(self, field: str) -> list[int] | None:
        """Which numbers of a stored field are read; None: all."""
        if not isinstance(self._spec, dict):
            return None
        sources: list[Source | Measured] = [part for parts in self._spec.values() for part in parts]
        for parts in self._spec.values():
            sources += [m for part in parts for m in (part.measured, part.added_to) if m is not None]
        read: list[int] = []
        for source in sources:
            if source.field == field:
                if source.columns is None:
                    return None
                read += [column for column in source.columns if column is not None]
        return sorted(set(read))

    def read(self, numbers: Numbers) -> Float[np.ndarray, "T F"]:
        """The vector of every step of an episode, float32; components not recorded hold neutral numbers."""
        if not isinstance(self._spec, dict):
            parts = [_flat(numbers(field)).astype(np.float32, copy=False) for field in self._spec]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        steps = len(numbers(self.fields[0]))
        columns = [
            _component(component, self._spec[component.name], numbers).astype(np.float32, copy=False)
            if self._spec[component.name]
            else np.tile(_neutral(component), (steps, 1))
            for component in self._components
        ]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)

    def _check_width(self, widths: Mapping[str, int]) -> None:
        got = sum(widths[field] for field in self.fields)
        if got != self.width:
            raise ValueError(
                f"{self._where} ({' + '.join(self.fields)}) has width {got}, embodiment {self._robot} wants "
                f"{self.width}; choose another embodiment or other fields"
            )

    def _check_components(self, spec: dict[str, tuple[Source, ...]], widths: Mapping[str, int]) -> None:
        names = [component.name for component in self._components]
        for name in spec:
            if name not in names:
                near = did_you_mean(name, names)
                raise ValueError(f"{self._where}: embodiment {self._robot} has no component '{name}'; {near}")
        for component in self._components:
            if component.name not in spec:
                raise ValueError(
                    f"{self._where}: the entry says nothing of component '{component.name}' of "
                    f"{self._robot}; map it to a field, or write `{component.name}: omit` if not recorded"
                )
            if problem := _problem(component, spec[component.name], widths):
                raise ValueError(f"{self._where}: component '{component.name}': {problem}")


class _Need(NamedTuple):
    """A field that a component reads, which numbers of it, and how many there must be."""

    field: str
    columns: tuple[int | None, ...] | None
    width: int


def _problem(component: Component, parts: tuple[Source, ...], widths: Mapping[str, int]) -> str | None:
    """What is wrong with the sources of a component, if anything."""
    for part in parts:
        if part.is_gripper and component.gripper is None:
            return f"it is no gripper, `open` and `closed` have no meaning ({part.field})"
        turns = part.rotation or part.added_to
        if turns and (component.rotation is None or len(component.slot_indices) != 3):
            return f"it is no whole rotation, `rotation` and `added_to` have no meaning ({part.field})"
        if part.measured and component.group.kind not in ("position", "rotation", "joints"):
            return f"`measured` is for positions, rotations and joints ({part.field})"
        if len(parts) > 1 and (part.is_gripper or turns or part.measured):
            return f"conversions need one source, got {len(parts)}"
    needs = _needs(component, parts)
    for need in needs:
        has = widths[need.field]
        beyond = [c for c in need.columns or () if c is not None and not 0 <= c < has]
        if beyond:
            return f"column {beyond[0]} of '{need.field}', which has {has} numbers (0..{has - 1})"
        got = has if need.columns is None else len(need.columns)
        if need.width and got != need.width:
            return f"'{need.field}' gives {got} numbers, wanted {need.width}; choose `columns`"
    total = sum(widths[n.field] if n.columns is None else len(n.columns) for n in needs if not n.width)
    if len(parts) > 1 and total != component.native_size:
        return f"its {len(parts)} sources give {total} numbers, wanted {component.native_size}"
    return None


def _needs(component: Component, parts: tuple[Source, ...]) -> list[_Need]:
    if len(parts) != 1:
        return [_Need(part.field, part.columns, 0) for part in parts]
    part = parts[0]
    width = stored_width(part.rotation) if part.rotation else component.native_size
    needs = [_Need(part.field, part.columns, width)]
    for other in (part.measured, part.added_to):
        if other is not None:
            size = stored_width(other.rotation) if other.rotation else width
            needs.append(_Need(other.field, other.columns, size))
    return needs


def _component(component: Component, parts: tuple[Source, ...], numbers: Numbers) -> Float[np.ndarray, "T F"]:
    """Native numbers of one component."""
    if len(parts) != 1:
        return np.concatenate([_picked(part, part.scale, numbers) for part in parts], axis=1)
    part = parts[0]
    values = _picked(part, part.scale, numbers)
    if part.is_gripper:
        return _gripper(component, part, values)
    if component.rotation is not None and (part.rotation or part.measured or part.added_to):
        return _rotation(component, part, values, numbers)
    if part.measured is not None:
        scale = part.scale if part.measured.scale is None else part.measured.scale
        return values - _picked(part.measured, scale, numbers)
    return values


def _gripper(component: Component, part: Source, values: np.ndarray) -> Float[np.ndarray, "T F"]:
    assert component.gripper is not None
    assert part.open is not None
    assert part.closed is not None
    openings = []
    for column in values.astype(np.float64).T:
        if part.relative is not None:
            opening = absolute_opening(column, part.open, part.closed, part.relative)
        else:
            opening = opening_of(column, part.open, part.closed)
        openings.append(binarized(opening) if part.binarize else opening)
    is_open, is_closed = component.gripper.open, component.gripper.closed
    return np.stack(openings, axis=1) * (is_open - is_closed) + is_closed


def _rotation(
    component: Component, part: Source, values: np.ndarray, numbers: Numbers
) -> Float[np.ndarray, "T F"]:
    """A stored rotation, or the turn between two, in the embodiment's encoding."""
    assert component.rotation is not None
    values = values.astype(np.float64)
    encoding = part.rotation or component.rotation
    if part.added_to is not None:
        here, before = _related(part.added_to, part, encoding, numbers)
        turn = rotation_between(before, decode_stored(here + values, encoding))
    elif part.measured is not None:
        _, before = _related(part.measured, part, encoding, numbers)
        turn = rotation_between(before, decode_stored(values, encoding))
    elif encoding == component.rotation:
        return values / np.array(component.native_scale)
    else:
        turn = decode_stored(values, encoding)
    return encode_rotation(turn, component.rotation) / np.array(component.native_scale)


def _related(
    measured: Measured, part: Source, encoding: str, numbers: Numbers
) -> tuple[np.ndarray, Rotation]:
    """The measured orientation, as numbers and as rotation."""
    scale = part.scale if measured.scale is None else measured.scale
    values = _picked(measured, scale, numbers).astype(np.float64)
    return values, decode_stored(values, measured.rotation or encoding)


def _picked(
    source: Source | Measured, scale: float | tuple[float, ...], numbers: Numbers
) -> Shaped[np.ndarray, "T F"]:
    """The chosen columns of a field, scaled; as stored where the scale is 1."""
    values = _flat(numbers(source.field))
    if source.columns is not None:
        padded = np.concatenate([values, np.zeros((len(values), 1), values.dtype)], axis=1)
        values = padded[:, [-1 if column is None else column for column in source.columns]]
    if scale == 1.0:
        return values
    return values.astype(np.float64) * np.array(scale)


def _neutral(component: Component) -> Float[np.ndarray, " F"]:
    """Native numbers that stand in for a component without data; its slots are masked."""
    if component.gripper is not None:
        return np.full(component.native_size, component.gripper.closed, np.float32)
    if component.native_size == 4 and component.rotation is not None:
        return encode_rotation(Rotation.identity(1), component.rotation)[0].astype(np.float32)
    return np.zeros(component.native_size, np.float32)


def _flat(values: Shaped[np.ndarray, "T ..."]) -> Shaped[np.ndarray, "T F"]:
    return values.reshape(len(values), math.prod(values.shape[1:]))  # not -1: there may be no steps
