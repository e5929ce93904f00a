"""Copies of adapters in the dtype of autocast: passes with them are those that convert layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vla_adapt.adaptation.method import Lora, SharedLora
from vla_adapt.adaptation.narrow_copies import NarrowCopies
from vla_adapt.adaptation.routed import RoutedLinear, route
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_openvla

ROBOTS = ["left", "left", "right"]


def make_model(alpha: int = 8) -> OpenVLA:
    model = tiny_openvla(seed=0).to(torch.bfloat16)
    Lora(rank=4, alpha=alpha, targets="all_linear", shared=SharedLora(rank=2)).prepare(
        model, ["left", "right"]
    )
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.train()


def gradients(model: OpenVLA, narrow: bool) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    ids, pixels = torch.randint(5, 200, (3, 8), generator=draw), torch.randn(3, 6, 84, 84, generator=draw)
    with torch.autocast("cpu", torch.bfloat16), route(model, ROBOTS, narrow=narrow):
        hidden = model.encode(ids, None, pixels)
    (hidden.float() * torch.randn(hidden.shape, generator=draw)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return hidden.detach(), grads


@pytest.mark.parametrize("alpha", [8, 3])
def test_they_change_nothing_but_the_dtype_in_which_gradients_are_summed(alpha: int):
    """The shared adapter's come of two groups of rows: summed in 16 bits without copies, in 32 with them."""
    model = make_model(alpha)
    hidden, wanted = gradients(model, narrow=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert NarrowCopies(model).refresh()
    mine, found = gradients(model, narrow=True)
    assert torch.equal(mine, hidden)
    assert found.keys() == wanted.keys()
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    for name, grad in found.items():
        if ".shared." in name:
            assert (grad - wanted[name]).norm() < 1e-2 * grad.norm()
        else:
            assert torch.equal(grad, wanted[name]), name


def test_they_follow_their_adapters():
    model = make_model()
    copies = NarrowCopies(model)
    layer = next(module for module in model.modules() if isinstance(module, RoutedLinear))
    with torch.autocast("cpu", torch.bfloat16):
        assert copies.refresh()
        first = layer.narrow["left"]
        with torch.no_grad():
            layer.lora_B["left"].weight.add_(1.0)
        assert copies.refresh()
        assert layer.narrow["left"] is first, "written again in place"
        assert torch.equal(first.B, layer.lora_B["left"].weight.bfloat16())
        assert torch.equal(first.scaled_B, layer.lora_B["left"].weight.bfloat16() * 2)
        layer.lora_A["left"].weight = nn.Parameter(torch.ones_like(layer.lora_A["left"].weight))
        layer.scaling["left"] = 4.0
        assert copies.refresh()
        assert layer.narrow["left"].A.eq(1).all()
        assert layer.narrow["left"].scaled_A.eq(4).all()


def test_two_passes_may_come_before_their_backward_passes():
    model = make_model()
    copies = NarrowCopies(model)
    ids, pixels = torch.randint(5, 200, (3, 8)), torch.randn(3, 6, 84, 84)
    total = torch.zeros(())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert copies.refresh()
            with route(model, ROBOTS, narrow=True):
                total = total + model.encode(ids, None, pixels).float().sum()
    total.backward()


def test_without_autocast_there_are_none():
    model = make_model()
    assert not NarrowCopies(model).refresh()
    bare = tiny_openvla(seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not NarrowCopies(bare).refresh()
