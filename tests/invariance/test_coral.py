"""CORAL against NumPy's own covariances."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from vla_adapt.invariance.coral import coral


def slow_coral(features: np.ndarray, robots: np.ndarray) -> float:
    """Deep CORAL's equation 1 plus the distance of the means."""
    width, values = features.shape[1], []
    for one, other in combinations(np.unique(robots), 2):
        x, y = features[robots == one], features[robots == other]
        spread = np.linalg.norm(np.cov(x, rowvar=False) - np.cov(y, rowvar=False), "fro") ** 2
        shift = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
        values.append(shift / width + spread / (4 * width**2))
    return float(np.mean(values))


@pytest.mark.parametrize("counts", [(4, 4), (2, 7), (3, 5, 9)])
def test_equals_the_slow_reference_with_unequal_counts(counts: tuple[int, ...]):
    rng = np.random.default_rng(len(counts))
    robots = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = rng.normal(size=(len(robots), 6)) * (1 + robots[:, None]) + robots[:, None]
    got = coral(torch.from_numpy(features), torch.from_numpy(robots))
    assert got is not None
    assert float(got) == pytest.approx(slow_coral(features, robots), rel=1e-5)


def test_nothing_without_two_rows_of_two_robots():
    features = torch.randn(5, 3)
    assert coral(features, torch.tensor([0, 0, 0, 0, 1])) is None
    with_a_lone_row = coral(features, torch.tensor([0, 0, 1, 1, 2]))
    without = coral(features[:4], torch.tensor([0, 0, 1, 1]))
    assert with_a_lone_row is not None
    torch.testing.assert_close(with_a_lone_row, without)


def test_sees_a_shift_and_a_stretch():
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    features = torch.cat([features, features])
    robots = torch.arange(80) // 40
    assert float(coral(features, robots)) == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]
    shifted = features + robots[:, None]
    assert float(coral(shifted, robots)) == pytest.approx(1.0, abs=1e-5)  # type: ignore[arg-type]
    stretched = (features - features.mean(dim=0)) * (1 + robots[:, None])
    assert float(coral(stretched, robots)) > 0.1  # type: ignore[arg-type]
