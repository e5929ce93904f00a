"""Named whole-episode transforms of native action and state, applied only through a `DatasetEntry`.

Each keeps a contiguous run of steps; how many it drops at either end is declared, so that lengths are known
without reading an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vla_adapt.actions.rotation import decode_rotation, encode_rotation, rotation_between
from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.episodes.mapping.gripper_commands import binarized
from vla_adapt.suggest import did_you_mean


class Motion(NamedTuple):
    """Native action [T, D] and state [T, P] (or None) of one episode."""

    action: Float[np.ndarray, "T D"]
    state: Float[np.ndarray, "T P"] | None


class Transform(NamedTuple):
    """A function on `Motion`, and how many steps it drops at the start and at the end."""

    apply: Callable[[Motion, Embodiment], Motion]
    drop_first: int = 0
    drop_last: int = 0


def drop_first_step(motion: Motion, embodiment: Embodiment) -> Motion:
    """Drop the first step, whose recorded action is a dummy (Bridge)."""
    return Motion(motion.action[1:], None if motion.state is None else motion.state[1:])


def drop_last_step(motion: Motion, embodiment: Embodiment) -> Motion:
    """Drop the last step, where an action is computed from the next one's observation."""
    return Motion(motion.action[:-1], None if motion.state is None else motion.state[:-1])


def binarize_gripper(motion: Motion, embodiment: Embodiment) -> Motion:
    """Make gripper actions fully open or closed, see `gripper_commands.binarized`."""
    action = motion.action.copy()
    for component, columns in _columns(embodiment.action):
        if component.gripper is None:
            continue
        is_closed, span = component.gripper.closed, component.gripper.open - component.gripper.closed
        for column in range(columns.start, columns.stop):
            opening = (action[:, column] - is_closed) / span
            action[:, column] = binarized(opening) * span + is_closed
    return Motion(action, motion.state)


def relabel_from_next_state(motion: Motion, embodiment: Embodiment) -> Motion:
    """Replace end-effector deltas by what the robot then did: next state minus state, rotations by SO(3).

    Grippers and other components keep their recorded action. The last step has no next state and is dropped.

    Raises:
        ValueError: no state, a tool-frame action, or no matching proprio component.
    """
    if motion.state is None:
        raise ValueError(f"{embodiment.name}: relabel_from_next_state needs a state; name it in the entry")
    state = motion.state.astype(np.float64)
    poses = {component.slots: (component, columns) for component, columns in _columns(embodiment.proprio)}
    action = motion.action[:-1].copy()
    for component, columns in _columns(embodiment.action):
        if component.group.kind not in ("position", "rotation"):
            continue
        if component.frame != "base" or component.slots not in poses:
            raise ValueError(
                f"{embodiment.name}: relabel_from_next_state needs '{component.name}' in the base frame "
                f"and a proprio component with slots {component.slots}"
            )
        pose, pose_columns = poses[component.slots]
        native = state[:, pose_columns] * np.array(pose.native_scale)
        if component.group.kind == "position":
            delta = native[1:] - native[:-1]
        else:
            assert pose.rotation is not None
            assert component.rotation is not None
            turns = decode_rotation(native, pose.rotation)
            delta = encode_rotation(rotation_between(turns[:-1], turns[1:]), component.rotation)
        action[:, columns] = delta / np.array(component.native_scale)
    return Motion(action, motion.state[:-1])


TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        "drop_first_step": Transform(drop_first_step, drop_first=1),
        "drop_last_step": Transform(drop_last_step, drop_last=1),
        "binarize_gripper": Transform(binarize_gripper),
        "relabel_from_next_state": Transform(relabel_from_next_state, drop_last=1),
    }
)


def find_transforms(names: tuple[str, ...]) -> list[Transform]:
    """Transforms by name.

    Raises:
        ValueError: an unknown name, with the near one.
    """
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"unknown transform '{name}'; {did_you_mean(name, TRANSFORMS)}")
    return [TRANSFORMS[name] for name in names]


def _columns(components: tuple[Component, ...]) -> Iterator[tuple[Component, slice]]:
    start = 0
    for component in components:
        yield component, slice(start, start + component.native_size)
        start += component.native_size
