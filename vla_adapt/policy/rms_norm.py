"""Llama's RMSNorm (Zhang & Sennrich, 1910.07467) with a backward pass in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm


class LeanRMSNorm(LlamaRMSNorm):
    """Llama's norm: the same numbers forward, on a GPU up to rounding (one kernel rounds once, not twice).

    Left to autograd, the backward pass of its ten operations takes eight times as long as one of layer norm.
    """

    def forward(self, hidden_states: Float[torch.Tensor, "*rows D"]) -> Float[torch.Tensor, "*rows D"]:
        """Each row over its root mean square, times the weight."""
        if hidden_states.is_cuda:
            weight = self.weight.to(hidden_states.dtype)
            with torch.autocast("cuda", enabled=False):  # it would widen what comes out
                return nn.functional.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
        if self.weight.requires_grad or not torch.is_grad_enabled():
            return super().forward(hidden_states)
        return _FrozenNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return]


class _FrozenNorm(torch.autograd.Function):
    """With a weight that does not train."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float):
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse = ctx.saved_tensors
        wide, scaled = x.float(), (grad * weight).float()
        shrink = (scaled * wide).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return (scaled * inverse).addcmul_(wide, shrink, value=-1.0).to(x.dtype), None, None


def make_norms_lean(language_model: nn.Module) -> None:
    """Make all norms of a Llama `LeanRMSNorm`, in place: weights and names stay."""
    for module in language_model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = LeanRMSNorm
