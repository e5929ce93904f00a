"""Conditioning on the robot: learned vectors between image and text that tell the backbone which robot it is.

The other way to share one backbone: instead of making features alike across robots (`invariance`), say which
robot is meant. A soft prompt is several vectors (prompt tuning, Lester et al., 2104.08691; per robot as in
X-VLA, Zheng et al., 2510.10274), an embodiment token is one. They are the robot's own, saved with its head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import nn

_STD = 0.02


class Condition(nn.Module):
    """`tokens` learned vectors of the language model's width, the same for every sample of the robot."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(tokens, width) * _STD)

    def forward(self, rows: int) -> Float[torch.Tensor, "B N D"]:
        """The vectors for each of `rows` samples."""
        return self.vectors.expand(rows, -1, -1)


def make_condition(kind: str, tokens: int, width: int) -> Condition | None:
    """Fresh vectors for "token" (one) or "soft_prompt" (`tokens`); None for "none"."""
    return None if kind == "none" else Condition(1 if kind == "token" else tokens, width)
