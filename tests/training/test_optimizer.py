"""Schedule by steps, clipping per robot."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.training.optimizer import OptimizerConfig, clip_per_robot, make_optimizer


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule=schedule)  # type: ignore[arg-type]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, rates = make_optimizer(config, {"a": [parameter], "none": []}, steps=100)
    seen = []
    for _ in range(100):
        seen.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    assert seen[0] == pytest.approx(0.1)
    assert max(seen) == seen[10] if schedule == "constant" else max(seen) <= 1.0
    assert seen[-1] == pytest.approx({"linear": 0.01, "cosine": 0.00025, "constant": 1.0}[schedule], abs=1e-4)
    assert len(optimizer.param_groups) == 1


def test_a_group_may_have_its_own_rate_and_momentum():
    mine, others = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer, _ = make_optimizer(
        OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="constant"), {"a": [mine], "b": [others]},
        steps=10, multiples={"b": 0.5}, momenta={"b": 0.0},
    )  # fmt: skip
    for gradient in (1.0, 0.0):  # where the gradient ends, momentum goes on
        before = mine.item(), others.item()
        mine.grad, others.grad = torch.full((1,), gradient), torch.full((1,), gradient)
        optimizer.step()
    assert mine.item() < before[0]
    assert others.item() == before[1] == pytest.approx(-0.5)


def test_one_robots_spike_does_not_shrink_anothers_step():
    wild, calm = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    wild.grad, calm.grad = torch.full((4,), 1e6), torch.full((4,), 0.1)
    norms = clip_per_robot([[wild], [calm]], 1.0)
    assert [norm.item() for norm in norms] == pytest.approx([2e6, 0.2])
    assert wild.grad.norm() == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(calm.grad, torch.full((4,), 0.1))


def test_stages_have_their_own_peak_and_warm_up_within_one_decay():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="linear")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, rates = make_optimizer(config, {"a": [parameter]}, steps=10, rates=[(0, 1.0), (5, 0.1)])
    seen = []
    for _ in range(10):
        seen.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    wanted = [0.5, 0.9, 0.8, 0.7, 0.6, 0.025, 0.04, 0.03, 0.02, 0.01]
    assert seen == pytest.approx(wanted)
