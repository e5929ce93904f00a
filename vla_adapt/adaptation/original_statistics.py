"""Action statistics between a bundle and the original OpenVLA's `norm_stats` / `dataset_statistics.json`.

The original un-normalizes number by number, v -> 0.5 (v + 1) (q99 - q01) + q01, where its mask is true, and
passes v unchanged where it is false: the gripper, 1 open and 0 closed. That is our rule for unified slots, so
the same action comes out as long as each number is one slot. Numbers of an original dataset are in the
dataset's own units and rotation encoding; ours are SI units of the unified slots, and an entry we write says
so by `unified_slots`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.types import NUM_SLOTS, SLOT_NAMES, slot_group_of

DATASET_STATISTICS = "dataset_statistics.json"
_KEYS = ("mean", "std", "min", "max", "q01", "q99")


def norm_stats_entry(statistics: Statistics) -> dict[str, Any]:
    """The original's entry for one robot: its slots in slot order, SI units, gripper masked.

    A quiet slot gets the range that `Normalizer` gives it, so that the original's formula acts the same.
    """
    slots = np.flatnonzero(statistics.mask)
    normalizer = Normalizer(statistics)
    values = {key: getattr(statistics, key)[slots].tolist() for key in _KEYS}
    grippers = _grippers(slots)
    for place, slot in enumerate(slots):
        center, half = float(normalizer.center[slot]), float(normalizer.half_range[slot])
        if not grippers[place] and half > (statistics.q99[slot] - statistics.q01[slot]) / 2:
            values["q01"][place], values["q99"][place] = center - half, center + half
    return {
        "action": {**values, "mask": (~grippers).tolist()},
        "num_transitions": int(statistics.count),
        "unified_slots": [SLOT_NAMES[slot] for slot in slots],
    }


def read_dataset_statistics(file: str | Path) -> dict[str, Any]:
    """Entries by dataset of a `dataset_statistics.json`, or of the `norm_stats` in a `config.json`.

    Raises:
        ValueError: no such file, not JSON, or no entry with an `action` in it.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(
            f"no statistics file {file}; finetune.py writes {DATASET_STATISTICS} into its run folder"
        )
    try:
        tree = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error})") from None
    tree = tree.get("norm_stats", tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("action"), dict) for entry in tree.values()
    ):
        raise ValueError(
            f"{file} is no {DATASET_STATISTICS}: wanted {{dataset: {{'action': {{'q01': ...}}}}}}"
        )
    return tree


def adopt_statistics(
    entry: Mapping[str, Any], embodiment: Embodiment
) -> tuple[Statistics, Embodiment, list[str]]:
    """Unified statistics that act as the original's `entry`, the robot to go with them, and notes for people.

    Numbers in a dataset's own units leave the policy as they would leave the original: rotations are not
    re-encoded, so the returned embodiment declares them as passed through.

    Raises:
        ValueError: another width or order than the robot's action, a gripper that is normalized, bad numbers.
    """
    notes: list[str] = []
    unified = entry.get("unified_slots")
    if unified is None:
        embodiment, notes = passed_through(embodiment)
    unifier = ActionUnifier(embodiment)
    slots = np.sort(unifier.slots) if unified is not None else unifier.slots
    _check_order(embodiment, slots, unified)
    q01, q99, mask = _bounds(entry["action"], embodiment, slots)
    scale = np.ones(len(slots))
    if unified is None:
        scale = np.array([s for component in embodiment.action for s in component.native_scale])
    if (scale < 0).any():
        raise ValueError(
            f"{embodiment.name}: a negative scale of an action number cannot take the original's statistics"
        )
    values = {
        "q01": np.where(mask | _grippers(slots), q01, -1.0),
        "q99": np.where(mask | _grippers(slots), q99, 1.0),
    }
    values |= _further(entry["action"], values, len(slots), notes)
    full = {key: np.zeros(NUM_SLOTS) for key in _KEYS}
    for key in _KEYS:
        full[key][slots] = values[key] * scale
    statistics = Statistics(**full, mask=unifier.mask, count=int(entry.get("num_transitions", 0)))
    quiet = Normalizer(statistics).half_range > (statistics.q99 - statistics.q01) / 2 + 1e-12
    quiet &= statistics.mask & ~np.isin(np.arange(NUM_SLOTS), slots[_grippers(slots)])
    if quiet.any():
        names = ", ".join(SLOT_NAMES[slot] for slot in np.flatnonzero(quiet))
        notes.append(
            f"{names}: next to no motion in the statistics; acts within our smallest range around its center"
        )
    return statistics, embodiment, notes


def passed_through(embodiment: Embodiment) -> tuple[Embodiment, list[str]]:
    """The robot with action numbers that go one by one into slots and out again, and what was changed.

    Raises:
        ValueError: a rotation of four numbers (quaternion), which has no place in three slots.
    """
    tree, notes = embodiment.model_dump(mode="json", exclude_none=True), []
    for component, given in zip(embodiment.action, tree["action"], strict=True):
        if component.is_linear and component.frame == "base":
            continue
        if component.native_size != len(component.slot_indices):
            raise ValueError(
                f"{embodiment.name}: action component {component.name!r} is {component.rotation}; the "
                "original predicts one number per slot: give an embodiment with axis_angle or euler_xyz"
            )
        how = f"{component.rotation or 'position'} in the {component.frame} frame"
        notes.append(f"action component {component.name!r} ({how}) passes through as the robot's own numbers")
        given["frame"] = "base"
        if component.rotation is not None:
            given["rotation"] = "axis_angle"
    if notes:
        tree["notes"] = "\n".join(
            [*filter(None, [embodiment.notes]), *(f"Imported: {note}." for note in notes)]
        )
    return Embodiment.model_validate(tree), notes


def _check_order(embodiment: Embodiment, slots: np.ndarray, unified: list[str] | None) -> None:
    if unified is not None and unified != (own := [SLOT_NAMES[slot] for slot in slots]):
        raise ValueError(
            f"the statistics are for slots {unified}, {embodiment.name} fills {own}; name its own robot"
        )
    if not (np.diff(slots) > 0).all():
        names = [component.name for component in embodiment.action]
        raise ValueError(
            f"{embodiment.name} lists its action as {names}, out of slot order; the original predicts "
            "numbers in the dataset's order: give an embodiment that lists them in slot order"
        )


def _bounds(
    action: Mapping[str, Any], embodiment: Embodiment, slots: np.ndarray
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    """q01, q99 and mask, checked."""
    width, found = len(slots), {}
    for key in ("q01", "q99", "mask"):
        given = action.get(key, [True] * width if key == "mask" else None)
        if not isinstance(given, list) or len(given) != width:
            got = f"{len(given)} numbers" if isinstance(given, list) else "none"
            names = ", ".join(component.name for component in embodiment.action)
            raise ValueError(
                f"statistics: {got} in {key!r}, but {embodiment.name} has {width} ({names}); "
                "name the right robot"
            )
        found[key] = np.array(given, dtype=bool if key == "mask" else np.float64)
    q01, q99, mask = found["q01"], found["q99"], found["mask"]
    if not (np.isfinite(q01).all() and np.isfinite(q99).all() and (q01 <= q99).all()):
        raise ValueError(f"statistics: q01 {q01.tolist()} and q99 {q99.tolist()} must be finite, q01 <= q99")
    if (wrong := np.flatnonzero(mask & _grippers(slots))).size:
        raise ValueError(
            f"statistics: number {int(wrong[0])} is the gripper of {embodiment.name} and its mask is true "
            "(or there is no mask), so the original normalizes it; here grippers pass unchanged, 1 is open"
        )
    return q01, q99, mask


def _further(
    action: Mapping[str, Any], bounds: Mapping[str, np.ndarray], width: int, notes: list[str]
) -> dict[str, np.ndarray]:
    """mean, std, min and max, which take no part in acting; where they are missing, from the bounds."""
    low, high = bounds["q01"], bounds["q99"]
    stand_in = {"mean": (low + high) / 2, "std": (high - low) / 2, "min": low, "max": high}
    missing = [key for key in stand_in if len(action.get(key, ())) != width]
    if missing:
        notes.append(f"{', '.join(missing)} missing in the statistics; taken from q01 and q99")
    return {
        key: default if key in missing else np.array(action[key], dtype=np.float64)
        for key, default in stand_in.items()
    }


def _grippers(slots: np.ndarray) -> Bool[np.ndarray, " D"]:
    return np.array([slot_group_of(int(slot)).kind == "gripper" for slot in slots], dtype=bool)
