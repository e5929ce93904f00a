"""Blocks that run traced give the same loss and gradients, for another length of text too.

The backend is "aot_eager": all of the tracing, without the minutes of a C++ compiler. It runs in a process of
its own, because what is traced must not check shapes as all code does under pytest.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from vla_adapt.adaptation.method import Lora
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_openvla
from vla_adapt.training.compiled import compiled_blocks

ROBOT = "ur5e"


def make_model() -> OpenVLA:
    model = tiny_openvla(seed=0)
    Lora(rank=4, targets="all_linear").prepare(model, [ROBOT])
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.train()


def step(model: OpenVLA, text: int) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(text)
    ids = torch.randint(5, 200, (2, text), generator=draw)
    pixels = torch.randn(2, 6, 84, 84, generator=draw)
    read = torch.tensor([[40, 41], [38, 41]])
    with route(model, [ROBOT] * 2):
        hidden = model.encode(ids, None, pixels, read=read)
    # Not its squares: the last norm makes their sum a constant, and gradients of it are rounding alone.
    loss = (hidden * torch.randn(hidden.shape, generator=draw)).sum()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), grads


def compare() -> None:
    model = make_model()
    plain = [step(model, text) for text in (8, 12)]
    names = list(model.state_dict())
    with compiled_blocks(model, backend="aot_eager"):
        compiled = [step(model, text) for text in (8, 12)]
        assert list(model.state_dict()) == names
    traced = torch._dynamo.utils.counters
    assert traced["stats"]["unique_graphs"] >= 5
    assert not traced["graph_break"]
    for (loss, grads), (wanted, wanted_grads) in zip(compiled, plain, strict=True):
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
        assert grads.keys() == wanted_grads.keys()
        largest = max(float(grad.abs().max()) for grad in wanted_grads.values())
        assert all((grads[name] - wanted_grads[name]).abs().max() < 1e-4 * largest for name in grads)
    assert torch.equal(step(model, 8)[0], plain[0][0]), "outside, blocks are plain again"


@pytest.mark.slow
def test_traced_steps_are_the_plain_ones():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unless_wanted_nothing_is_compiled():
    model = make_model()
    with compiled_blocks(model, wanted=False):
        assert all(module._compiled_call_impl is None for module in model.modules())
    with compiled_blocks(model, backend="aot_eager"):
        layer = model.language_model.model.layers[0]
        assert layer._compiled_call_impl is not None
    assert layer._compiled_call_impl is None


if __name__ == "__main__":
    compare()
