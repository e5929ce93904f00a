"""The helper loss: standardized, trains, and is not saved."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.heads import HeadOutput
from vla_adapt.training.auxiliary import AuxiliaryLoss, target_statistics


def head_output() -> HeadOutput:
    return HeadOutput(torch.zeros(2), torch.zeros(2, 3, 32), torch.rand(2, 5, 4), torch.rand(2, 3, 4))


def test_zero_when_right_and_in_standard_deviations():
    targets = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    mean, std = target_statistics(targets)
    helper = AuxiliaryLoss(4, mean, std)
    for layer in (helper.from_patches, helper.from_action):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    output = head_output()
    at_mean = helper(output, mean.expand(2, 2))
    assert torch.equal(at_mean, torch.zeros(2))
    one_off = helper(output, (mean + std).expand(2, 2))
    assert one_off.tolist() == pytest.approx([2.0, 2.0])


def test_a_constant_target_does_not_divide_by_zero():
    mean, std = target_statistics(torch.ones(5, 1))
    helper = AuxiliaryLoss(4, mean, std)
    output = head_output()
    assert torch.isfinite(helper(output, torch.ones(2, 1))).all()
