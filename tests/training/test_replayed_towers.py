"""A recording of the towers is replayed where it fits and nowhere else; on a GPU with the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vla_adapt.adaptation.method import Lora
from vla_adapt.adaptation.narrow_copies import NarrowCopies
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_openvla
from vla_adapt.training.replayed_towers import ReplayedTowers

ROBOTS = ["left"] * 2


def make_model(device: str = "cpu") -> OpenVLA:
    """Base in bfloat16, adapters in float32, as a recipe in bf16 has them."""
    model = tiny_openvla(seed=0).to(torch.bfloat16)
    Lora(rank=4, targets="all_linear").prepare(model, ["left", "right"])
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.to(device).train()


def passes(
    model: OpenVLA, robots: list[str], copies: NarrowCopies | None, seed: int = 0, grad: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Projected patches of random images, and gradients of adapters."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(robots), 6, 84, 84, generator=draw).to(model.device)
    device = model.device.type
    with torch.autocast(device, torch.bfloat16), nullcontext() if grad else torch.no_grad():
        narrow = copies is not None and copies.refresh()
        with route(model, robots, narrow=narrow):
            patches = model.project(pixels)
    if grad:
        (patches.float() * torch.randn(patches.shape, generator=draw).to(device)).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return patches.detach().clone(), grads


@pytest.fixture
def recorded() -> list[tuple[int, ...]]:
    return []


@pytest.fixture
def replaying(recorded: list[tuple[int, ...]]) -> Callable[[OpenVLA], ReplayedTowers]:
    """Towers whose recordings are written down, and run their module."""

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        recorded.append(tuple(arguments[0].shape))

        def replay(pixels: Tensor) -> Tensor:
            recorded.append(())
            return module(pixels)

        return replay

    return lambda model: ReplayedTowers(model, record, device_type="cpu")


def test_one_recording_serves_all_passes_like_it(replaying: Any, recorded: list[Any]):
    model = make_model()
    copies = NarrowCopies(model)
    plain = [passes(model, ROBOTS, copies, seed) for seed in (0, 1)]
    with replaying(model).used():
        for seed, (patches, grads) in enumerate(plain):
            found, mine = passes(model, ROBOTS, copies, seed)
            assert torch.equal(found, patches)
            assert all(torch.equal(mine[name], grads[name]) for name in grads)
    assert recorded == [(2, 6, 84, 84), (), ()]
    passes(model, ROBOTS, copies)
    assert len(recorded) == 3, "outside, towers run as ever"


def test_what_does_not_fit_runs_as_ever(replaying: Any, recorded: list[Any]):
    model = make_model()
    copies = NarrowCopies(model)
    with replaying(model).used():
        passes(model, ROBOTS, None)
        passes(model, ROBOTS, copies, grad=False)
        model.eval()
        passes(model, ROBOTS, copies)
        model.train()
        assert recorded == [], "nothing to record"
        passes(model, ROBOTS, copies)
        recorded.clear()
        passes(model, ["left"] * 3, copies)
        passes(model, ["right"] * 2, copies)
        passes(model, ["left", "right"], copies)
        assert recorded == []
        passes(model, ROBOTS, copies)
        assert recorded == [()]


def test_a_pass_before_the_backward_pass_of_another_runs_as_ever(replaying: Any, recorded: list[Any]):
    """Its tensors would be written over."""
    model = make_model()
    copies = NarrowCopies(model)
    pixels = torch.randn(2, 6, 84, 84)
    with replaying(model).used(), torch.autocast("cpu", torch.bfloat16):
        assert copies.refresh()
        with route(model, ROBOTS, narrow=True):
            first, second = model.project(pixels), model.project(pixels)
            assert recorded == [(2, 6, 84, 84), ()]
            second.float().sum().backward()
            model.project(pixels)
            assert len(recorded) == 2
            first.float().sum().backward()
            model.project(pixels)
            assert len(recorded) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_replay_gives_the_same_gradients():
    model = make_model("cuda")
    copies = NarrowCopies(model)
    plain = [passes(model, ROBOTS, copies, seed) for seed in (0, 1, 2)]
    with ReplayedTowers(model).used():
        replayed = [passes(model, ROBOTS, copies, seed) for seed in (0, 1, 2)]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        changed = passes(model, ROBOTS, copies, 0)
    for (patches, grads), (found, mine) in zip(
        [*plain, passes(model, ROBOTS, copies, 0)], [*replayed, changed], strict=True
    ):
        torch.testing.assert_close(found, patches, rtol=2e-2, atol=2e-2)
        for name, grad in grads.items():
            assert (mine[name] - grad).norm() <= 1e-2 * grad.norm(), name
