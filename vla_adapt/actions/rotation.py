"""Rotations between native encodings and axis-angle, always through SO(3); Euler angles are never subtracted.

`euler_xyz` is roll, pitch, yaw in radians with R = Rz(yaw) Ry(pitch) Rx(roll): turns about the *fixed* x, y
and z axes in this order, scipy's lower-case (extrinsic) "xyz". Quaternions come back with w >= 0, as q and -q
are one rotation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla_adapt.embodiment import RotationEncoding


def decode_rotation(numbers: Float[np.ndarray, "N F"], encoding: RotationEncoding) -> Rotation:
    """Native rotation numbers (radians; quaternions of any positive length) to N rotations.

    Raises:
        ValueError: a quaternion of zero length.
    """
    if encoding == "axis_angle":
        return Rotation.from_rotvec(numbers)
    if encoding == "euler_xyz":
        return Rotation.from_euler("xyz", numbers)
    quaternion = numbers if encoding == "quaternion_xyzw" else np.roll(numbers, -1, axis=-1)
    zero = np.linalg.norm(quaternion, axis=-1) < 1e-6
    if zero.any():
        raise ValueError(
            f"quaternion of length 0 at row {int(np.argmax(zero))} ({int(zero.sum())} of {len(zero)} rows); "
            "wanted unit quaternions - drop the steps whose pose is missing"
        )
    return Rotation.from_quat(quaternion)


def encode_rotation(rotation: Rotation, encoding: RotationEncoding) -> Float[np.ndarray, "N F"]:
    """N rotations to native numbers: the inverse of `decode_rotation`.

    Axis-angle has length at most pi; Euler roll and yaw are in (-pi, pi], pitch in [-pi/2, pi/2].
    """
    if encoding == "axis_angle":
        return rotation.as_rotvec()
    if encoding == "euler_xyz":
        return rotation.as_euler("xyz", suppress_warnings=True)
    quaternion = rotation.as_quat(canonical=True)
    return quaternion if encoding == "quaternion_xyzw" else np.roll(quaternion, 1, axis=-1)


def rotation_between(before: Rotation, after: Rotation) -> Rotation:
    """The base-frame turn that takes `before` to `after`: after = turn * before."""
    return after * before.inv()


def reference_rotation(rpy_deg: tuple[float, float, float]) -> Rotation:
    """R_ref from roll, pitch, yaw in degrees (same convention as `euler_xyz`)."""
    return Rotation.from_euler("xyz", rpy_deg, degrees=True)
