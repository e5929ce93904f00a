"""The adversary: balance, conditioning, penalty, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla_adapt.invariance.dann import (
    RobotClassifier,
    balanced_accuracy,
    balanced_cross_entropy,
    gradient_penalty,
)


def test_every_robot_counts_the_same():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]])
    robots = torch.tensor([0, 1, 1, 1])
    losses = nn.functional.cross_entropy(logits, robots, reduction="none")
    wanted = (losses[0] + losses[1:].mean()) / 2
    torch.testing.assert_close(balanced_cross_entropy(logits, robots), wanted)
    assert float(balanced_accuracy(logits, robots)) == pytest.approx((1 + 1 / 3) / 2)


def test_weights_are_of_the_seed_and_the_global_generator_is_left_alone():
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    first, again, other = (RobotClassifier(6, 3, 8, conditional=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_conditional_reads_the_instruction():
    features = torch.randn(4, 6)
    by_number = RobotClassifier(6, 3, 8, conditional=True)
    same, other = by_number(features, torch.tensor([7] * 4)), by_number(features, torch.tensor([8] * 4))
    assert not torch.allclose(same, other)
    by_vector = RobotClassifier(6, 3, 8, conditional=True, condition_width=5)
    vectors = torch.randn(4, 5, requires_grad=True)
    by_vector(features, vectors).sum().backward()
    assert vectors.grad is None, "no gradient flows into the condition"
    plain = RobotClassifier(6, 3, 8)
    assert torch.equal(plain(features), plain(features, torch.tensor([7] * 4)))


def test_wrong_conditions_are_refused():
    features = torch.randn(4, 6)
    by_number = RobotClassifier(6, 3, 8, conditional=True)
    with pytest.raises(ValueError, match="got no condition"):
        by_number(features)
    with pytest.raises(ValueError, match=r"wanted \[B\] whole numbers"):
        by_number(features, torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"wanted \[B, 5\]"):
        RobotClassifier(6, 3, 8, conditional=True, condition_width=5)(features, torch.zeros(4, 6))


def test_penalty_is_the_squared_slope_and_reaches_the_classifier_only():
    classifier = RobotClassifier(3, 2, 8)
    features, robots = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 0, 1, 1])
    penalty = gradient_penalty(classifier, features, robots)
    slopes = []
    for row in range(5):
        one = features[row : row + 1].detach().requires_grad_()
        nn.functional.cross_entropy(classifier(one), robots[row : row + 1]).backward()
        assert one.grad is not None
        slopes.append(one.grad.square().sum())
    torch.testing.assert_close(penalty, torch.stack(slopes).mean())
    classifier.zero_grad()
    penalty.backward()
    assert features.grad is None
    assert classifier.layers[0].weight.grad.abs().max() > 0  # type: ignore[union-attr]
