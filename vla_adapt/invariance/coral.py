"""Deep CORAL: equal means and covariances of the robots' features (Sun & Saenko, 2016, 1607.01719)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from vla_adapt.invariance.robot_pairs import block_sums, membership, pair_mean


def coral(features: Float[Tensor, "B F"], robot_index: Int[Tensor, " B"]) -> Float[Tensor, ""] | None:
    """||mean - mean'||^2 / F + ||covariance - covariance'||^2 / (4 F^2), averaged over pairs of robots.

    Deep CORAL has only the second term and does not see a robot that shifts the features; the means are added
    as in DomainBed (Gulrajani & Lopez-Paz, 2007.01434). Computed from products between rows, so that no F x F
    matrix is made.

    Returns:
        None when fewer than two robots have two rows or more; other robots' rows do not count.
    """
    members = membership(robot_index, features.dtype)
    if members is None:
        return None
    counts, width = members.sum(dim=0), features.shape[1]
    means = (members / counts).T @ features
    kept = members.any(dim=1)
    members, rows = members[kept], features[kept]
    centered = rows - members @ means
    products = block_sums((centered @ centered.T).square(), members / (counts - 1))  # <C, C'>
    return pair_mean(means @ means.T) / width + pair_mean(products) / (4 * width**2)
