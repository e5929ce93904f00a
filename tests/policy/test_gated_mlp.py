"""The lean MLP is Llama's, bit for bit, and keeps less."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from vla_adapt.policy.gated_mlp import LeanMLP


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_llamas(tiny_model, dtype):
    lean = copy.deepcopy(tiny_model.language_model.model.layers[0].mlp).to(dtype)
    assert type(lean) is LeanMLP
    llamas = copy.deepcopy(lean)
    llamas.__class__ = LlamaMLP
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    results = []
    for mlp in (lean, llamas):
        out = mlp(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *mlp.parameters()])])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


def test_two_tensors_are_kept_between_the_products(tiny_model):
    mlp = tiny_model.language_model.model.layers[0].mlp.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mlp(torch.randn(2, 5, 128, requires_grad=True))
    assert kept.count(torch.Size([2, 5, 512])) == 2
