"""Shares of datasets: each rule against numbers worked out by hand."""

from __future__ import annotations

import pytest

from vla_adapt.episodes.mixing.balance import Balance, balanced_weights

WEIGHTS, STEPS, ROBOTS = [2.0, 1.0, 1.0], [100, 300, 50], ["ur5e", "ur5e", "widowx"]


@pytest.mark.parametrize(
    ("balance", "shares"),
    [
        ("none", [0.5, 0.25, 0.25]),
        ("dataset", [1 / 3, 1 / 3, 1 / 3]),
        ("robot", [0.5 * 200 / 500, 0.5 * 300 / 500, 0.5]),
        ("size", [200 / 550, 300 / 550, 50 / 550]),
    ],
)
def test_rules(balance: Balance, shares: list[float]) -> None:
    got = balanced_weights(WEIGHTS, STEPS, ROBOTS, balance)
    assert [weight / sum(got) for weight in got] == pytest.approx(shares)


def test_unbalanced_weights_are_passed_on_untouched() -> None:
    """Rounding them would move the order of existing recipes."""
    assert balanced_weights([0.1, 0.7], [3, 4], ["a", "b"], "none") == [0.1, 0.7]


@pytest.mark.parametrize("balance", ["none", "dataset", "robot", "size"])
def test_huge_weights_can_still_be_summed(balance: Balance) -> None:
    plain = balanced_weights([1.0, 0.5], [100, 300], ["a", "b"], balance)
    huge = balanced_weights([1.6e308, 0.8e308], [100, 300], ["a", "b"], balance)
    assert [weight / sum(huge) for weight in huge] == pytest.approx([w / sum(plain) for w in plain])
