import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.sim.rendering import CameraView, cluster_faces


def grid_mesh(n):
    """A flat n x n grid of squares of side 1, two triangles each."""
    x, y = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros((n + 1) ** 2)], axis=1)
    corner = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    lower = np.stack([corner, corner + 1, corner + n + 2], axis=1)
    upper = np.stack([corner, corner + n + 2, corner + n + 1], axis=1)
    return vertices, np.concatenate([lower, upper]).astype(np.int32)


def area(vertices, faces):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_small_cells_leave_a_mesh_as_it_is():
    vertices, faces = grid_mesh(6)
    rows, thinned = cluster_faces(vertices, faces, 0.5)
    np.testing.assert_array_equal(rows, np.arange(len(faces)))
    np.testing.assert_array_equal(thinned, faces)


def test_large_cells_thin_a_mesh_but_keep_its_area():
    vertices, faces = grid_mesh(12)
    _rows, thinned = cluster_faces(vertices, faces, 3.0)
    assert len(thinned) < len(faces) / 6
    assert area(vertices, thinned) > 0.5 * area(vertices, faces)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 3.0))
def test_thinned_faces_are_valid_and_never_more(seed, cell):
    rng = np.random.default_rng(seed)
    vertices, faces = rng.normal(size=(30, 3)), rng.integers(0, 30, (50, 3))
    rows, thinned = cluster_faces(vertices, faces, cell)
    assert len(rows) == len(thinned) <= len(faces)
    assert np.all(np.diff(rows) > 0)
    assert ((thinned >= 0) & (thinned < len(vertices))).all()
    assert all(len(set(face)) == 3 for face in thinned.tolist())


@given(st.tuples(*[st.floats(-2, 2)] * 3), st.floats(-3, 3))
def test_a_carried_view_keeps_its_place_in_the_frame_that_carries_it(position, heading):
    view = CameraView((0.5, 0.1, -0.03), 0.6, 150.0, -32.0)
    seen = view.carried(np.array(position), heading)
    c, s = np.cos(heading), np.sin(heading)
    into_frame = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(into_frame @ (np.array(seen.lookat_m) - position), view.lookat_m, atol=1e-9)
    assert seen.azimuth_deg - np.degrees(heading) == pytest.approx(150.0)
    assert (seen.distance_m, seen.elevation_deg, seen.fovy_deg) == (0.6, -32.0, 40.0)
