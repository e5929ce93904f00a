"""A printable map of an embodiment: which native number fills which slot, in what unit and frame."""

from __future__ import annotations

from typing import NamedTuple

from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.types import SLOT_NAMES, VectorKind


class SlotRow(NamedTuple):
    """One filled slot. `columns` are native columns ("3", or "3-6" where several make one rotation)."""

    slot: int
    slot_name: str
    component: str
    columns: str
    unit: str
    frame: str
    scale: str
    encoding: str


def describe(embodiment: Embodiment, kind: VectorKind = "action") -> list[SlotRow]:
    """Rows of the slot map of the `action` or `proprio` vector, in native order.

    In the proprio the end-effector slots hold absolute poses, so "_delta" is left out of their names.
    """
    rows: list[SlotRow] = []
    start = 0
    for component in embodiment.components(kind):
        for offset, slot in enumerate(component.slot_indices):
            last = start + component.native_size - 1
            columns = str(start + offset) if component.is_linear else f"{start}-{last}"
            name = SLOT_NAMES[slot] if kind == "action" else SLOT_NAMES[slot].replace("_delta", "")
            number = offset if component.native_size == len(component.slot_indices) else 0
            rows.append(
                SlotRow(
                    slot=slot,
                    slot_name=name,
                    component=component.name,
                    columns=columns,
                    unit=component.native_units[number],
                    frame=_frame(component),
                    scale=f"{component.native_scale[number]:g}",
                    encoding=_encoding(component),
                )
            )
        start += component.native_size
    return rows


def _frame(component: Component) -> str:
    has_frame = component.group.kind in ("position", "rotation", "velocity")
    return component.frame if has_frame else ""


def _encoding(component: Component) -> str:
    """How the native numbers are to be read, where unit and scale do not say it."""
    if component.gripper is not None:
        return f"open={component.gripper.open:g} closed={component.gripper.closed:g}"
    if component.rotation is None:
        return ""
    reference = component.reference_rpy_deg
    relative = (
        "" if reference is None else " relative to rpy " + " ".join(f"{x:g}" for x in reference) + " deg"
    )
    return component.rotation + relative
