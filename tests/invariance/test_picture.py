"""Principal components against NumPy, and pictures as files."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.invariance.picture import feature_picture, picture_bytes, principal_components


def test_components_equal_those_of_the_correlation_matrix():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 5.0
    places, shares = principal_components(features)
    values, vectors = np.linalg.eigh(np.corrcoef(features, rowvar=False))
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    assert shares == pytest.approx(values[::-1][:2] / 4)
    for column in range(2):
        wanted = standard @ vectors[:, -1 - column]
        assert np.allclose(places[:, column], wanted) or np.allclose(places[:, column], -wanted)


def test_components_of_little_are_zero():
    places, shares = principal_components(np.ones((5, 3)))
    assert (places.any(), shares.any()) == (False, False)
    places, shares = principal_components(np.arange(4.0)[:, None])
    assert places.shape == (4, 2)
    assert shares == pytest.approx([1.0, 0.0])


def test_picture_as_png_and_svg():
    rng = np.random.default_rng(0)
    robots = ["ur5e", "widowx"] * 10
    figure = feature_picture({
        "before": (rng.normal(size=(20, 3)), robots), "after": (rng.normal(size=(20, 3)), robots),
    })  # fmt: skip
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["ur5e", "widowx"]
    assert picture_bytes(figure).startswith(b"\x89PNG")
    assert b"<svg" in picture_bytes(figure, "svg")
