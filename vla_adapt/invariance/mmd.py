"""Multi-kernel maximum mean discrepancy (Gretton et al., 2012; DAN, Long et al., 1502.02791)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_adapt.invariance.robot_pairs import block_sums, membership, pair_mean

# Kernel widths, as shares of the median squared distance; the mean of the kernels is taken.
WIDTHS = (1 / 16, 1 / 4, 1.0, 4.0)


def mmd2(features: Float[Tensor, "B F"], robot_index: Int[Tensor, " B"]) -> Float[Tensor, ""] | None:
    """Squared MMD between the robots' features, averaged over pairs of robots.

    The kernel is the mean of Gaussians exp(-d^2 / (w * median)), where `median` is that of the squared
    distances between all different rows, held constant (the median heuristic). It is the unbiased
    U-statistic: for equal distributions its expected value is zero however few rows there are, so it can be
    slightly negative. The V-statistic would pull all rows together in small batches.

    Returns:
        None when fewer than two robots have two rows or more; other robots' rows do not count.
    """
    members = membership(robot_index, features.dtype)
    if members is None:
        return None
    kept = members.any(dim=1)
    members, rows = members[kept], features[kept]
    kernel = _kernel(_squared_distances(rows))
    kernel = kernel - torch.diag(kernel.diagonal())  # a row is not compared with itself
    counts = members.sum(dim=0)
    pairs = counts[:, None] * counts[None, :] - torch.diag(counts)
    return pair_mean(block_sums(kernel, members) / pairs)


def _squared_distances(features: Float[Tensor, "B F"]) -> Float[Tensor, "B B"]:
    centered = features - features.mean(dim=0)  # distances stay, cancellation shrinks
    squares = centered.square().sum(dim=1)
    return (squares[:, None] + squares[None, :] - 2 * centered @ centered.T).clamp_min(0.0)


def _kernel(distances: Float[Tensor, "B B"]) -> Float[Tensor, "B B"]:
    different = ~torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    median = distances.detach()[different].median().clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.stack([torch.exp(-distances / (width * median)) for width in WIDTHS]).mean(dim=0)
