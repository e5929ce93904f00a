"""How well commanded motion explains measured motion: as it is, scaled, turned, or with a delay."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

# A direction in which less than this share of the strongest direction happens says nothing about mirroring.
FLAT_DIRECTION = 0.05
NEAR_AXIS_DEG = 20.0


class Fit(NamedTuple):
    """measured ~ scale * turn @ commanded.

    Attributes:
        scale: at least 0.
        turn: [3, 3] orthogonal; determinant -1 mirrors.
        explained: share of the measured motion's energy that the fit explains; at most 1, below 0 never.
    """

    scale: float
    turn: Float[np.ndarray, "3 3"]
    explained: float


def fit_scaled(commanded: Float[np.ndarray, "M 3"], measured: Float[np.ndarray, "M 3"]) -> Fit:
    """Best scale, without any turn."""
    scale = max(0.0, float((commanded * measured).sum() / max((commanded**2).sum(), 1e-30)))
    return Fit(scale, np.eye(3), _explained(measured, scale * commanded))


def fit_turned(commanded: Float[np.ndarray, "M 3"], measured: Float[np.ndarray, "M 3"]) -> Fit:
    """Best scale and rotation or mirror image (Procrustes)."""
    left, strength, right = np.linalg.svd(measured.T @ commanded)
    turn = left @ right
    if np.linalg.det(turn) < 0 and strength[2] < FLAT_DIRECTION * strength[0]:
        left[:, 2] *= -1
        turn = left @ right
    return Fit(
        *fit_scaled(commanded @ turn.T, measured)[:1], turn, fit_scaled(commanded @ turn.T, measured)[2]
    )


def fit_level(given: Float[np.ndarray, "M F"], reached: Float[np.ndarray, "M F"]) -> float:
    """Share of the variance of `reached` that an affine function of each own column of `given` explains."""
    total = left = 0.0
    for x, y in zip(given.T, reached.T, strict=True):
        spread = float(((y - y.mean()) ** 2).sum())
        total += spread
        if x.std() < 1e-9 or y.std() < 1e-9:
            left += spread
        else:
            left += spread * (1 - float(np.corrcoef(x, y)[0, 1]) ** 2)
    return 1 - left / total if total > 0 else 0.0


def angle_deg(turn: Float[np.ndarray, "3 3"]) -> float:
    """How far a turn is from doing nothing, degrees; a mirror image counts as 180."""
    if np.linalg.det(turn) < 0:
        return 180.0
    return float(np.degrees(Rotation.from_matrix(turn).magnitude()))


def turn_in_words(turn: Float[np.ndarray, "3 3"]) -> str:
    """ "(-y, x, z), turned by 90 deg about +z": where commanded x, y and z turn up."""
    mirrored = np.linalg.det(turn) < 0
    nearest = np.zeros((3, 3))
    for row in range(3):
        column = int(np.argmax(np.abs(turn[row])))
        nearest[row, column] = np.sign(turn[row, column])
    axes = ", ".join(
        ("-" if nearest[row].sum() < 0 else "") + "xyz"[int(np.argmax(np.abs(nearest[row])))]
        for row in range(3)
    )
    if mirrored:
        return f"like ({axes}), a mirror image"
    vector = Rotation.from_matrix(turn).as_rotvec()
    angle = float(np.linalg.norm(vector))
    unit = vector / max(angle, 1e-12)
    axis = int(np.argmax(np.abs(unit)))
    if np.degrees(np.arccos(min(1.0, abs(unit[axis])))) < NEAR_AXIS_DEG:
        about = ("-" if unit[axis] < 0 else "+") + "xyz"[axis]
    else:
        about = "axis [" + ", ".join(f"{value:.2f}" for value in unit) + "]"
    near = abs(nearest.T @ nearest - np.eye(3)).max() < 0.5 and angle_deg(turn @ nearest.T) < NEAR_AXIS_DEG
    return (f"like ({axes}), " if near else "") + f"turned by {np.degrees(angle):.0f} deg about {about}"


def _explained(measured: Float[np.ndarray, "M 3"], predicted: Float[np.ndarray, "M 3"]) -> float:
    energy = float((measured**2).sum())
    return 1 - float(((measured - predicted) ** 2).sum()) / energy if energy > 0 else 0.0
