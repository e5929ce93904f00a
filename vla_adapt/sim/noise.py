"""Noise on an expert's executed actions: clean labels then tell how to recover (DART, Laskey et al. 2017)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

SPREAD = 0.3  # standard deviation, native units
PUSH_CHANCE = 0.06  # per step, that a push begins
PUSH_STEPS = (2, 5)
PUSH_SIZE = 0.5
SLIP_STEPS = (3, 6)


class ActionNoise:
    """Gaussian noise on the moving dimensions plus, now and then, a push (2-5 steps) or a gripper slip."""

    def __init__(
        self,
        moving: Bool[np.ndarray, " D"],
        rng: np.random.Generator,
        scale: float | int = 1.0,
        slip_chance: float | int = 0.0,
    ):
        """`moving` [D]: dimensions that get noise (grippers do not); of those, dimensions at rest
        (exactly 0, as an arm while its base drives) get none. `scale` makes all of it weaker or stronger.
        `slip_chance`, per step: that all grippers begin to do the opposite for 3 to 6 steps. They close on
        nothing or drop the object, and the labels tell how to try again."""
        self._gain, self._rng = moving * scale, rng
        self._grippers, self._slip_chance, self._slip_left = ~moving, slip_chance, 0
        self._push, self._push_left = np.zeros(len(moving)), 0

    def __call__(self, action: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
        """The action to execute instead of `action`, within [-1, 1]."""
        if self._push_left == 0 and self._rng.random() < PUSH_CHANCE:
            self._push_left = int(self._rng.integers(PUSH_STEPS[0], PUSH_STEPS[1] + 1))
            self._push = self._rng.normal(0.0, PUSH_SIZE, len(action))
        pushed = self._push if self._push_left else 0.0
        self._push_left = max(0, self._push_left - 1)
        noise = self._rng.normal(0.0, SPREAD, len(action)) + pushed
        if self._slip_left == 0 and self._slip_chance and self._rng.random() < self._slip_chance:
            self._slip_left = int(self._rng.integers(SLIP_STEPS[0], SLIP_STEPS[1] + 1))
        executed = np.where(self._grippers & (self._slip_left > 0), -action, action)
        self._slip_left = max(0, self._slip_left - 1)
        return np.clip(executed + noise * self._gain * (action != 0.0), -1.0, 1.0)
