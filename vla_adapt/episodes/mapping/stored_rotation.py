"""Rotations in every encoding that datasets store them in, decoded to SO(3)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import decode_rotation

_PLAIN = ("axis_angle", "quaternion_xyzw", "quaternion_wxyz")


def stored_width(encoding: str) -> int:
    """How many numbers a stored rotation takes."""
    if encoding.startswith("quaternion"):
        return 4
    return {"matrix": 9, "rotation_6d": 6, "rotation_6d_rows": 6}.get(encoding, 3)


def decode_stored(numbers: Float[np.ndarray, "N F"], encoding: str) -> Rotation:
    """Stored numbers (radians; see `entry.Source.rotation` for the encodings) to N rotations.

    Matrices need not be exactly orthonormal; the nearest rotation is taken.

    Raises:
        ValueError: a quaternion or matrix axis of length 0.
    """
    if encoding in _PLAIN:
        return decode_rotation(numbers, encoding)  # type: ignore[arg-type]
    if encoding.startswith("euler_"):
        return Rotation.from_euler(encoding.removeprefix("euler_"), numbers)
    if encoding == "matrix":
        matrices = numbers.reshape(-1, 3, 3)
    else:
        first, second = numbers[:, :3], numbers[:, 3:]
        axes = np.stack([first, second, np.cross(first, second)], axis=1)
        matrices = axes if encoding == "rotation_6d_rows" else axes.swapaxes(1, 2)
    flat = np.abs(np.linalg.det(matrices)) < 1e-6
    if flat.any():
        raise ValueError(
            f"{encoding} without three independent axes at row {int(np.argmax(flat))} ({int(flat.sum())} of "
            f"{len(flat)} rows); drop the steps whose pose is missing"
        )
    return Rotation.from_matrix(_orthonormal(matrices))


def _orthonormal(matrices: Float[np.ndarray, "N 3 3"]) -> Float[np.ndarray, "N 3 3"]:
    """First two columns by Gram-Schmidt, the third their cross product."""
    first = matrices[:, :, 0] / np.linalg.norm(matrices[:, :, 0], axis=1, keepdims=True)
    second = matrices[:, :, 1] - first * (first * matrices[:, :, 1]).sum(axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=2)
