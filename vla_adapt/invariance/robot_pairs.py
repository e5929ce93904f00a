"""Sums over the robots' blocks of a matrix between rows, and the average over pairs of robots."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_ROWS = 2  # of a robot, below which nothing can be said about how its features spread


def membership(
    robot_index: Int[Tensor, " B"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B R"] | None:
    """One column per robot that has at least two rows: 1 where the row is its own.

    Returns:
        None when fewer than two robots have as many.
    """
    robots, counts = torch.unique(robot_index, return_counts=True)
    robots = robots[counts >= MIN_ROWS]
    if len(robots) < 2:
        return None
    return (robot_index[:, None] == robots).to(dtype)


def block_sums(between_rows: Float[Tensor, "B B"], members: Float[Tensor, "B R"]) -> Float[Tensor, "R R"]:
    """Sum of a matrix between rows over each pair of robots."""
    return members.T @ between_rows @ members


def pair_mean(inner: Float[Tensor, "R R"]) -> Float[Tensor, ""]:
    """Mean over pairs of different robots of the squared distance ||a||^2 + ||b||^2 - 2 <a, b>.

    Args:
        inner: <a, b> of the robots, the squares on the diagonal (or unbiased estimates of them).
    """
    squares = inner.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * inner
    first, second = torch.triu_indices(len(inner), len(inner), offset=1, device=inner.device)
    return distances[first, second].mean()
