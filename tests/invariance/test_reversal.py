"""Gradient reversal: signs against finite differences, and the ramp."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla_adapt.invariance.dann import balanced_cross_entropy
from vla_adapt.invariance.reversal import dann_ramp, reverse_gradient


def finite_difference(parameter: torch.Tensor, loss, step: float = 1e-5) -> torch.Tensor:
    """Central differences of `loss()` by every entry of `parameter`."""
    slopes = torch.zeros_like(parameter)
    flat, out = parameter.data.view(-1), slopes.view(-1)
    for place in range(len(flat)):
        value = flat[place].item()
        flat[place] = value + step
        high = loss().item()
        flat[place] = value - step
        low = loss().item()
        flat[place] = value
        out[place] = (high - low) / (2 * step)
    return slopes


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_the_classifier_descends_and_the_encoder_ascends(scale: float):
    torch.manual_seed(0)
    encoder = nn.Linear(5, 4).double()
    classifier = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, robots = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3

    def loss() -> torch.Tensor:
        return balanced_cross_entropy(classifier(encoder(inputs)), robots)

    reversed_loss = balanced_cross_entropy(classifier(reverse_gradient(encoder(inputs), scale)), robots)
    assert torch.equal(reversed_loss, loss()), "forwards nothing changes"
    reversed_loss.backward()
    for parameter in classifier.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, finite_difference(parameter, loss), atol=1e-8, rtol=1e-5)
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        slope = finite_difference(parameter, loss)
        assert slope.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, -scale * slope, atol=1e-8, rtol=1e-5)


def test_ramp():
    assert dann_ramp(0.0) == 0.0
    assert dann_ramp(0.5) == pytest.approx(0.986614, abs=1e-6)
    assert dann_ramp(1.0) == pytest.approx(0.999909, abs=1e-6)
