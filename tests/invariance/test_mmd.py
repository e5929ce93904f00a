"""MMD against a reference that loops over pairs of rows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from vla_adapt.invariance.mmd import WIDTHS, mmd2


def slow_mmd2(features: np.ndarray, robots: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3, for every pair of robots; one bandwidth for all."""
    rows = range(len(features))
    between = [float(np.sum((features[i] - features[j]) ** 2)) for i in rows for j in rows if i != j]
    median = float(np.sort(between)[(len(between) - 1) // 2])

    def kernel(i: int, j: int) -> float:
        square = float(np.sum((features[i] - features[j]) ** 2))
        return sum(np.exp(-square / (width * median)) for width in WIDTHS) / len(WIDTHS)

    values = []
    for one, other in combinations(np.unique(robots), 2):
        x, y = np.flatnonzero(robots == one), np.flatnonzero(robots == other)
        m, n = len(x), len(y)
        within_x = sum(kernel(i, j) for i in x for j in x if i != j) / (m * (m - 1))
        within_y = sum(kernel(i, j) for i in y for j in y if i != j) / (n * (n - 1))
        across = sum(kernel(i, j) for i in x for j in y) / (m * n)
        values.append(within_x + within_y - 2 * across)
    return float(np.mean(values))


@pytest.mark.parametrize("counts", [(4, 4), (2, 7), (3, 5, 9)])
def test_equals_the_slow_reference_with_unequal_counts(counts: tuple[int, ...]):
    rng = np.random.default_rng(len(counts))
    robots = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = rng.normal(size=(len(robots), 6)) + 0.7 * robots[:, None]
    got = mmd2(torch.from_numpy(features), torch.from_numpy(robots))
    assert got is not None
    assert float(got) == pytest.approx(slow_mmd2(features, robots), rel=1e-5)


def test_nothing_without_two_rows_of_two_robots():
    features = torch.randn(5, 3)
    assert mmd2(features, torch.zeros(5, dtype=torch.long)) is None
    assert mmd2(features, torch.tensor([0, 0, 0, 0, 1])) is None
    with_a_lone_row = mmd2(features, torch.tensor([0, 0, 1, 1, 2]))
    assert with_a_lone_row is not None
    without = mmd2(features[:4], torch.tensor([0, 0, 1, 1]))
    assert torch.equal(with_a_lone_row, without), "a robot of one row does not count"


def test_unbiased_and_grows_with_the_shift():
    draw = torch.Generator().manual_seed(0)
    robots = torch.arange(20) % 2

    def average(shift: float) -> float:
        values = []
        for _ in range(200):
            features = torch.randn(20, 4, generator=draw) + shift * robots[:, None]
            values.append(float(mmd2(features, robots)))  # type: ignore[arg-type]
        return float(np.mean(values))

    same, little, much = average(0.0), average(0.5), average(2.0)
    assert abs(same) < 0.01
    assert same + 0.02 < little < much / 3


def test_identical_features_give_zero_and_finite_gradients():
    features = torch.ones(6, 3, requires_grad=True)
    value = mmd2(features, torch.arange(6) % 2)
    assert value is not None
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]
