"""Every stored encoding against rotations built axis by axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.episodes.mapping.stored_rotation import decode_stored, stored_width

ANGLES = np.array([[0.3, -0.7, 1.1], [-2.0, 0.4, 0.9]])
AXES = {"x": np.eye(3)[0], "y": np.eye(3)[1], "z": np.eye(3)[2]}


def about(axis: str, angles: np.ndarray) -> Rotation:
    return Rotation.from_rotvec(np.outer(angles, AXES[axis]))


@pytest.mark.parametrize("axes", ["xyz", "zyx", "zxy", "yxz"])
def test_lower_case_turns_about_fixed_axes(axes: str) -> None:
    first, second, third = (about(axis, ANGLES[:, i]) for i, axis in enumerate(axes))
    wanted = (third * second * first).as_matrix()
    np.testing.assert_allclose(decode_stored(ANGLES, f"euler_{axes}").as_matrix(), wanted, atol=1e-12)


@pytest.mark.parametrize("axes", ["XYZ", "ZYX", "ZXY"])
def test_upper_case_turns_about_moving_axes(axes: str) -> None:
    first, second, third = (about(axis.lower(), ANGLES[:, i]) for i, axis in enumerate(axes))
    wanted = (first * second * third).as_matrix()
    np.testing.assert_allclose(decode_stored(ANGLES, f"euler_{axes}").as_matrix(), wanted, atol=1e-12)


def test_matrices_and_their_first_two_axes() -> None:
    matrices = Rotation.random(5, random_state=3).as_matrix()
    columns = np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1)
    for numbers, encoding in (
        (matrices.reshape(5, 9), "matrix"),
        (columns, "rotation_6d"),
        (matrices[:, :2].reshape(5, 6), "rotation_6d_rows"),
    ):
        assert stored_width(encoding) == numbers.shape[1]
        np.testing.assert_allclose(decode_stored(numbers, encoding).as_matrix(), matrices, atol=1e-12)


def test_rounded_matrices_become_rotations() -> None:
    matrices = Rotation.random(4, random_state=1).as_matrix()
    turn = decode_stored(matrices.reshape(4, 9) * 1.01 + 1e-3, "matrix").as_matrix()
    np.testing.assert_allclose(
        turn @ turn.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(turn, matrices, atol=0.01)


@pytest.mark.parametrize("encoding", ["axis_angle", "quaternion_xyzw", "quaternion_wxyz"])
def test_plain_encodings(encoding: str) -> None:
    turn = Rotation.random(3, random_state=2)
    quaternion = turn.as_quat()
    numbers = {
        "axis_angle": turn.as_rotvec(),
        "quaternion_xyzw": quaternion * 2,
        "quaternion_wxyz": quaternion[:, [3, 0, 1, 2]],
    }[encoding]
    np.testing.assert_allclose(decode_stored(numbers, encoding).as_matrix(), turn.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("encoding", ["matrix", "rotation_6d", "quaternion_xyzw"])
def test_missing_poses_are_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match="row 0"):
        decode_stored(np.zeros((2, stored_width(encoding))), encoding)
