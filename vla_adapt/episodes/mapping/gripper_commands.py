"""Stored gripper numbers to openings (1 open, 0 closed): any two end values, relative commands, binarized."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05


def opening_of(numbers: Float[np.ndarray, " T"], is_open: float, is_closed: float) -> Float[np.ndarray, " T"]:
    """Linear between the two end values, clipped beyond them."""
    return np.clip((numbers - is_closed) / (is_open - is_closed), 0.0, 1.0)


def absolute_opening(
    commands: Float[np.ndarray, " T"], is_open: float, is_closed: float, threshold: float
) -> Float[np.ndarray, " T"]:
    """Openings that "open" and "close" commands over a whole episode amount to.

    Args:
        commands: towards `is_open`: open; towards `is_closed`: close; less than `threshold` of either: keep.
        is_open: a full "open" command; `is_closed` has the other sign.
        is_closed: a full "close" command.
        threshold: above it, in units of a full command, a command counts.

    Returns:
        1 or 0 at every step. Before the first command the gripper is in the state which that command ends;
        without any command it is open.
    """
    opens, closes = commands / is_open > threshold, commands / is_closed > threshold
    given = np.flatnonzero(opens | closes)
    if not len(given):
        return np.ones_like(commands)
    latest = np.searchsorted(given, np.arange(len(commands)), side="right") - 1
    wanted = opens[given].astype(commands.dtype)
    return np.where(latest >= 0, wanted[np.maximum(latest, 0)], 1.0 - wanted[0])


def binarized(opening: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Fully open or closed, as Open X-Embodiment does.

    Above 0.95 is open, below 0.05 is closed, and in between counts as the next decided step (scanning
    backwards); an undecided end keeps its last number.
    """
    decided = (opening > OPEN_ABOVE) | (opening < CLOSED_BELOW)
    steps = np.arange(len(opening))
    following = np.minimum.accumulate(np.where(decided, steps, len(opening))[::-1])[::-1]
    values = np.append((opening > OPEN_ABOVE).astype(opening.dtype), opening[-1:])
    return values[following]
