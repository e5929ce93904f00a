"""Llama's gated MLP (Shazeer, 2002.05202), keeping two of its inner tensors instead of three."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaMLP


class LeanMLP(LlamaMLP):
    """Llama's MLP, the same numbers bit for bit; silu(gate) is computed again instead of kept."""

    def forward(self, x: Float[torch.Tensor, "*rows D"]) -> Float[torch.Tensor, "*rows D"]:
        """down(silu(gate(x)) * up(x))."""
        # A compiler decides itself what it keeps; PyTorch 2.11's made zeros of the gradients of `_Gated`.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


class _Gated(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor):
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        scaled = grad * up
        gate_grad = torch.ops.aten.silu_backward.grad_input(scaled, gate, grad_input=scaled)
        return gate_grad, nn.functional.silu(gate).mul_(grad)


def make_mlps_lean(language_model: nn.Module) -> None:
    """Make all MLPs of a Llama that are gated by silu `LeanMLP`, in place: weights and names stay."""
    for module in language_model.modules():
        if type(module) is LlamaMLP and module.config.hidden_act == "silu":
            module.__class__ = LeanMLP
