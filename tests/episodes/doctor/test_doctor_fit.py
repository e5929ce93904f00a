"""Fits of commanded to measured motion recover what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.episodes.doctor.doctor_fit import angle_deg, fit_level, fit_scaled, fit_turned, turn_in_words


@pytest.fixture
def commanded() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 3))


def test_scale_and_share_explained(commanded: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(size=commanded.shape)
    fit = fit_scaled(commanded, 0.3 * commanded + 0.1 * noise)
    assert fit.scale == pytest.approx(0.3, abs=0.02)
    assert fit.explained == pytest.approx(0.09 / (0.09 + 0.01), abs=0.02)
    backwards = fit_scaled(commanded, -commanded)
    assert (backwards.scale, backwards.explained) == (0.0, 0.0)


def test_turn_is_recovered(commanded: np.ndarray) -> None:
    turn = Rotation.from_euler("xyz", [20, -50, 130], degrees=True)
    fit = fit_turned(commanded, 2 * turn.apply(commanded))
    np.testing.assert_allclose(fit.turn, turn.as_matrix(), atol=1e-9)
    assert (fit.scale, fit.explained) == (pytest.approx(2), pytest.approx(1))
    assert angle_deg(fit.turn) == pytest.approx(np.degrees(turn.magnitude()))


def test_mirror_image_only_where_all_directions_move(commanded: np.ndarray) -> None:
    mirror = np.diag([1.0, -1.0, 1.0])
    fit = fit_turned(commanded, commanded @ mirror)
    np.testing.assert_allclose(fit.turn, mirror, atol=1e-9)
    assert angle_deg(fit.turn) == 180
    # In a plane a mirror image of the third axis cannot be told; a rotation is the simpler story.
    flat = commanded * [1, 1, 0]
    assert np.linalg.det(fit_turned(flat, flat).turn) == pytest.approx(1)


def test_in_words() -> None:
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    assert turn_in_words(quarter) == "like (-y, x, z), turned by 90 deg about +z"
    assert turn_in_words(quarter.T) == "like (y, -x, z), turned by 90 deg about -z"
    assert turn_in_words(np.diag([1.0, 1.0, -1.0])) == "like (x, y, -z), a mirror image"
    eighth = Rotation.from_euler("x", 45, degrees=True).as_matrix()
    assert turn_in_words(eighth) == "turned by 45 deg about +x"


def test_level_is_the_share_of_variance() -> None:
    rng = np.random.default_rng(2)
    given = rng.normal(size=(2000, 2))
    reached = 3 * given + [5, -1] + 3 * rng.normal(size=(2000, 2))
    assert fit_level(given, reached) == pytest.approx(0.5, abs=0.04)
    assert fit_level(given, given * 0.2 + 1) == pytest.approx(1)
    assert fit_level(np.ones((9, 1)), np.arange(9.0)[:, None]) == 0
