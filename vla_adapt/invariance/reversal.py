"""Gradient reversal and the ramp of its strength (Ganin et al., 2016, 1505.07818)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _Reversal(torch.autograd.Function):
    """Identity forwards; backwards the gradient times `-scale`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(values: Float[Tensor, "*n"], scale: float) -> Float[Tensor, "*n"]:
    """`values` unchanged; what is before it receives the gradient of what follows times `-scale`."""
    result = _Reversal.apply(values, scale)
    assert isinstance(result, Tensor)
    return result


def dann_ramp(progress: float | int) -> float:
    """2 / (1 + exp(-10 p)) - 1 for the share `p` of training that is done: 0 at 0, 0.987 at 0.5, 1 at 1."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
