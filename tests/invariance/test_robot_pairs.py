"""Which robots count in a batch, and averages over pairs of them."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.invariance.robot_pairs import block_sums, membership, pair_mean


def test_membership_leaves_out_lone_rows():
    members = membership(torch.tensor([5, 2, 5, 9, 2]))
    assert members is not None
    assert members.tolist() == [[0, 1], [1, 0], [0, 1], [0, 0], [1, 0]]
    assert membership(torch.tensor([5, 5, 2])) is None


def test_block_sums():
    members = membership(torch.tensor([0, 1, 0, 1]))
    assert members is not None
    sums = block_sums(torch.arange(16.0).view(4, 4), members)
    assert sums.tolist() == [[20.0, 24.0], [36.0, 40.0]]


def test_pair_mean_of_inner_products_is_the_mean_squared_distance():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert float(pair_mean(points @ points.T)) == pytest.approx((25.0 + 1.0 + 18.0) / 3)
