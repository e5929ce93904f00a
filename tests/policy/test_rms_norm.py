"""The lean norm is Llama's: bit for bit forward, up to rounding backward."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vla_adapt.policy.rms_norm import LeanRMSNorm


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_forward_is_llamas_and_backward_its_derivative(dtype, bound):
    llamas = LlamaRMSNorm(32, eps=1e-6).to(dtype).requires_grad_(False)
    llamas.weight.normal_(generator=torch.Generator().manual_seed(0))
    lean = copy.deepcopy(llamas)
    lean.__class__ = LeanRMSNorm
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 32, generator=draw).to(dtype).requires_grad_()
    upstream = torch.randn(3, 5, 32, generator=draw).to(dtype)
    assert torch.equal(lean(x), llamas(x))
    (mine,) = torch.autograd.grad(lean(x), x, upstream)
    (theirs,) = torch.autograd.grad(llamas(x), x, upstream)
    assert mine.dtype == dtype
    assert (mine - theirs).abs().max() <= bound * theirs.abs().max()


def test_a_weight_that_trains_gets_its_gradient(tiny_model):
    norm = tiny_model.language_model.model.norm
    assert type(norm) is LeanRMSNorm
    norm(torch.randn(2, 128)).sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().sum() > 0
