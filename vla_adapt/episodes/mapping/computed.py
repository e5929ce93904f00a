"""Named functions that compute a field from others over a whole episode, for what no declaration expresses.

Each takes arrays [T, ...] and gives one [T, F]; `width` is F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vla_adapt.suggest import did_you_mean


class Function(NamedTuple):
    """What to call, how many fields it takes, and how many numbers a step it gives."""

    apply: Callable[..., Shaped[np.ndarray, "T F"]]
    inputs: int
    width: int


def planar_steps(
    position: Shaped[np.ndarray, "T ..."], yaw: Shaped[np.ndarray, "T ..."]
) -> Float[np.ndarray, "T 3"]:
    """Forward, left (m) and turn (rad, counter-clockwise) to the next pose, in the robot's own frame.

    Args:
        position: [T, 2] in a fixed frame, m.
        yaw: [T, 1] or [T], rad.

    Returns:
        [T, 3]; the last step has no next pose and is 0: drop it (`drop_last_step`).
    """
    places = position.reshape(len(position), 2).astype(np.float64)
    heading = yaw.reshape(len(yaw)).astype(np.float64)
    ahead = np.diff(places, axis=0, append=places[-1:])
    turn = np.diff(heading, append=heading[-1:])
    cos, sin = np.cos(heading), np.sin(heading)
    forward = cos * ahead[:, 0] + sin * ahead[:, 1]
    left = -sin * ahead[:, 0] + cos * ahead[:, 1]
    return np.stack([forward, left, np.arctan2(np.sin(turn), np.cos(turn))], axis=1)


FUNCTIONS: Mapping[str, Function] = MappingProxyType({"planar_steps": Function(planar_steps, 2, 3)})


def find_function(name: str) -> Function:
    """A function by name.

    Raises:
        ValueError: an unknown name, with the near one.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"unknown function '{name}'; {did_you_mean(name, FUNCTIONS)}")
    return FUNCTIONS[name]
