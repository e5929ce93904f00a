"""Weights of robots' losses: by share, by learned scale; the same for a sample in any batch."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.training.loss_balance import LearnedScales, make_balance

ROBOTS = ["ur5e", "panda", "base"]


def test_equal_robots_count_alike_in_expectation():
    balance = make_balance("equal", ROBOTS, {"ur5e": 3.0, "panda": 1.0, "base": 1.0})
    assert balance is not None
    rows = ["ur5e"] * 3 + ["panda", "base"]  # a batch as the shares say
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0, 0.5])
    assert balance(losses, rows).mean().item() == pytest.approx((2.0 + 10.0 + 0.5) / 3)
    assert list(balance.parameters()) == []
    assert balance.state_dict() == {}


def test_equal_shares_change_nothing():
    balance = make_balance("equal", ROBOTS)
    assert balance is not None
    losses = torch.rand(4)
    torch.testing.assert_close(balance(losses, ["base", "ur5e", "ur5e", "panda"]), losses)


@pytest.mark.parametrize("kind", ["equal", "uncertainty"])
def test_a_sample_counts_the_same_in_any_batch(kind):
    balance = make_balance(kind, ROBOTS, {"ur5e": 3.0, "panda": 1.0, "base": 2.0})
    assert balance is not None
    for parameter in balance.parameters():
        torch.nn.init.normal_(parameter)
    losses, robots = torch.rand(4), ["base", "ur5e", "ur5e", "panda"]
    alone = [balance(losses[row : row + 1], robots[row : row + 1]) for row in range(4)]
    assert torch.equal(torch.cat(alone), balance(losses, robots))


def test_learned_scales_find_the_size_of_each_loss():
    """At the optimum s = log(loss) the pull on a shared weight, exp(-s), is 1 / loss."""
    balance = LearnedScales(ROBOTS)
    losses = torch.tensor([10.0, 0.1, 1.0])
    torch.testing.assert_close(balance(losses, ROBOTS), losses)  # at first
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        balance(losses, ROBOTS).sum().backward()
        optimizer.step()
    torch.testing.assert_close(balance.log_scales.detach(), losses.log(), atol=1e-2, rtol=1e-2)
    given = losses.clone().requires_grad_()
    balance(given, ROBOTS).sum().backward()
    torch.testing.assert_close(given.grad, 1 / losses, atol=1e-2, rtol=1e-2)


def test_nothing_to_balance():
    assert make_balance("none", ["ur5e"]) is None
    with pytest.raises(ValueError, match=r"'uncertainty' got one robot \(ur5e\), wanted two or more"):
        make_balance("uncertainty", ["ur5e"])
