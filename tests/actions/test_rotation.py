"""Rotation encodings agree with their stated conventions and undo themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import decode_rotation, encode_rotation, reference_rotation, rotation_between
from vla_adapt.embodiment import RotationEncoding

ENCODINGS: list[RotationEncoding] = ["axis_angle", "euler_xyz", "quaternion_xyzw", "quaternion_wxyz"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(seed=st.integers(0, 2**31))
def test_encode_undoes_decode(encoding: RotationEncoding, seed: int) -> None:
    rotation = Rotation.random(20, rng=seed)
    again = decode_rotation(encode_rotation(rotation, encoding), encoding)
    assert np.allclose((again * rotation.inv()).magnitude(), 0.0, atol=1e-6)


def test_euler_is_roll_pitch_yaw_about_fixed_axes() -> None:
    roll, pitch, yaw = 0.3, -0.5, 0.9
    c, s = np.cos, np.sin
    about_x = np.array([[1, 0, 0], [0, c(roll), -s(roll)], [0, s(roll), c(roll)]])
    about_y = np.array([[c(pitch), 0, s(pitch)], [0, 1, 0], [-s(pitch), 0, c(pitch)]])
    about_z = np.array([[c(yaw), -s(yaw), 0], [s(yaw), c(yaw), 0], [0, 0, 1]])
    got = decode_rotation(np.array([[roll, pitch, yaw]]), "euler_xyz").as_matrix()[0]
    assert np.allclose(got, about_z @ about_y @ about_x)


def test_quaternion_orders_differ_only_in_the_place_of_w() -> None:
    xyzw = np.array([[0.1, 0.2, 0.3, 0.9]])
    wxyz = np.array([[0.9, 0.1, 0.2, 0.3]])
    one, other = decode_rotation(xyzw, "quaternion_xyzw"), decode_rotation(wxyz, "quaternion_wxyz")
    assert np.allclose(one.as_matrix(), other.as_matrix())
    assert np.allclose(encode_rotation(one, "quaternion_wxyz"), wxyz / np.linalg.norm(wxyz))


def test_quaternions_come_back_with_positive_w() -> None:
    rotation = decode_rotation(np.array([[0.0, 0.6, 0.0, -0.8]]), "quaternion_xyzw")
    assert np.allclose(encode_rotation(rotation, "quaternion_xyzw"), [[0.0, -0.6, 0.0, 0.8]])


def test_zero_quaternion_is_refused_with_its_row() -> None:
    numbers = np.array([[0.0, 0, 0, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"quaternion of length 0 at row 1 \(1 of 2 rows\)"):
        decode_rotation(numbers, "quaternion_xyzw")


def test_rotation_between_is_right_across_the_pi_wrap_where_subtracting_angles_is_not() -> None:
    before = Rotation.from_euler("xyz", [0, 0, 179], degrees=True)
    after = Rotation.from_euler("xyz", [0, 0, -179], degrees=True)
    assert np.allclose(rotation_between(before, after).as_rotvec(degrees=True), [0, 0, 2])


def test_rotation_between_is_a_turn_in_the_base_frame() -> None:
    before = reference_rotation((90.0, 0.0, 0.0))
    turn = Rotation.from_rotvec([0, 0, 0.1])
    assert np.allclose(rotation_between(before, turn * before).as_rotvec(), [0, 0, 0.1])
