"""Which rows were given the same instruction, and a statistic taken within such groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Alignment = Callable[[Float[Tensor, "B F"], Int[Tensor, " B"]], Float[Tensor, ""] | None]

_PRIME = 2**31 - 1
_BASE = 1_000_003


def instruction_ids(ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """A number for each row's text that is the same in every batch and on every rank (a polynomial hash)."""
    found = torch.full((len(ids),), 17, dtype=torch.int64, device=ids.device)
    for column, there in zip(ids.long().unbind(1), mask.unbind(1), strict=True):
        found = torch.where(there, (found * _BASE + column + 1) % _PRIME, found)
    return found


def group_numbers(condition: Num[Tensor, "B ..."]) -> Int[Tensor, " B"]:
    """Numbers 0, 1, ... such that rows of equal condition, and only they, have the same."""
    return torch.unique(condition, dim=0, return_inverse=True)[1]


def within_groups(
    statistic: Alignment,
    features: Float[Tensor, "B F"],
    robot_index: Int[Tensor, " B"],
    condition: Num[Tensor, "B ..."] | None,
) -> Float[Tensor, ""] | None:
    """`statistic` within each group of equal condition, averaged over the rows of groups that have one.

    Returns:
        The average; None when no group has enough robots and rows. Without condition all rows are one group.
    """
    if condition is None:
        return statistic(features, robot_index)
    numbers = group_numbers(condition)
    total, rows = features.new_zeros(()), 0
    for number in range(int(numbers.max()) + 1):
        mine = numbers == number
        value = statistic(features[mine], robot_index[mine])
        if value is not None:
            count = int(mine.sum())
            total, rows = total + count * value, rows + count
    return total / rows if rows else None
