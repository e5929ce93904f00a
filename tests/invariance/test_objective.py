"""The invariance loss: off means off, refusals, precision, units, schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla_adapt.invariance.objective import InvarianceConfig, InvarianceObjective

ROBOTS = ("ur5e", "franka_panda", "widowx")
METHODS = ("dann", "mmd", "coral")


def trained(config: InvarianceConfig | None, steps: int = 5) -> dict[str, torch.Tensor]:
    """Weights of a small encoder with dropout after some steps beside the objective."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
    objective = None if config is None else InvarianceObjective(config, 4, ROBOTS)
    parameters = [*encoder.parameters(), *(objective.parameters() if objective else ())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for step in range(steps):
        inputs = torch.randn(12, 6)
        features = encoder(inputs)
        loss = (features - inputs[:, :4]).square().mean()
        if objective is not None:
            loss = loss + objective(features, torch.arange(12) % 3, step / steps)[0]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return encoder.state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_weight_0_changes_no_bit(method: str):
    plain = trained(None)
    off = trained(InvarianceConfig(method=method, weight=0.0))  # type: ignore[arg-type]
    on = trained(InvarianceConfig(method=method, weight=1.0))  # type: ignore[arg-type]
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    assert not all(torch.equal(plain[name], on[name]) for name in plain)


def test_none_is_off_and_has_no_parameters():
    config = InvarianceConfig()
    assert not config.active
    objective = InvarianceObjective(config, 4, ("ur5e",))
    loss, metrics = objective(torch.randn(3, 4), torch.zeros(3, dtype=torch.long), 0.5)
    assert (loss.item(), metrics, list(objective.parameters())) == (0.0, {}, [])


@pytest.mark.parametrize("method", METHODS)
def test_one_robot_only_is_refused(method: str):
    config = InvarianceConfig(method=method)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 1 robot\(s\) \(ur5e\), wanted two or more"):
        InvarianceObjective(config, 4, ("ur5e",))
    with pytest.raises(ValueError, match="a robot twice"):
        InvarianceObjective(config, 4, ("ur5e", "ur5e"))


@pytest.mark.parametrize("method", METHODS)
def test_conditional_wants_a_condition(method: str):
    config = InvarianceConfig(method=method, conditional=True)  # type: ignore[arg-type]
    objective = InvarianceObjective(config, 4, ROBOTS)
    features, robots = torch.randn(12, 4), torch.arange(12) % 3
    with pytest.raises(ValueError, match="no condition is given"):
        objective(features, robots, 1.0)
    same, _ = objective(features, robots, 1.0, torch.zeros(12, dtype=torch.long))
    parted, _ = objective(features, robots, 1.0, (torch.arange(12) // 6).long())
    assert not torch.equal(same, parted)


@pytest.mark.parametrize("method", METHODS)
def test_computed_in_float32_under_bfloat16(method: str):
    objective = InvarianceObjective(InvarianceConfig(method=method), 4, ROBOTS)  # type: ignore[arg-type]
    features, robots = torch.randn(12, 4).bfloat16(), torch.arange(12) % 3
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(features, robots, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(features.float(), robots, 1.0)[0])


@pytest.mark.parametrize("method", METHODS)
def test_neither_scale_nor_shrinking_matters(method: str):
    objective = InvarianceObjective(InvarianceConfig(method=method), 4, ROBOTS)  # type: ignore[arg-type]
    features, robots = torch.randn(30, 4, requires_grad=True), torch.arange(30) % 3
    loss, _ = objective(features, robots, 1.0)
    large, _ = objective(features * torch.tensor([10.0, 1.0, 5.0, 0.5]) - 7.0, robots, 1.0)
    torch.testing.assert_close(loss, large, atol=1e-4, rtol=1e-3)
    (slope,) = torch.autograd.grad(loss, features)
    along = (slope * (features - features.mean(dim=0))).sum().abs() / (slope.norm() * features.norm())
    assert along < 1e-4, "no gradient towards smaller or larger features"


@pytest.mark.parametrize("method", METHODS)
def test_features_that_do_not_vary_give_no_gradient(method: str):
    objective = InvarianceObjective(InvarianceConfig(method=method), 4, ROBOTS)  # type: ignore[arg-type]
    features = (torch.ones(12, 4) * 3).requires_grad_()
    loss, _ = objective(features, torch.arange(12) % 3, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert features.grad.abs().max() == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_one_robot_or_of_one_row_trains_on(method: str):
    objective = InvarianceObjective(InvarianceConfig(method=method), 4, ROBOTS)  # type: ignore[arg-type]
    for rows in (1, 5):
        features = torch.randn(rows, 4, requires_grad=True)
        loss, _ = objective(features, torch.ones(rows, dtype=torch.long), 1.0)
        loss.backward()
        assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]
        if method != "dann":
            assert loss.item() == 0.0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{name}: DDP waits for every parameter"


def test_features_get_the_reversed_gradient_times_the_strength():
    config = InvarianceConfig(method="dann", weight=0.5, schedule="warmup", warmup=0.4)
    objective = InvarianceObjective(config, 4, ROBOTS)
    features, robots = torch.randn(12, 4, requires_grad=True), torch.arange(12) % 3
    slopes = {}
    for progress in (0.1, 0.2, 1.0):
        loss, metrics = objective(features, robots, progress)
        (slopes[progress],) = torch.autograd.grad(loss, features)
        assert metrics["strength"].item() == pytest.approx(0.5 * min(1.0, progress / 0.4))
    torch.testing.assert_close(slopes[0.2], 2 * slopes[0.1])
    torch.testing.assert_close(slopes[1.0], 4 * slopes[0.1])
    with torch.no_grad():
        far, _ = objective(features + 1e-2 * slopes[1.0] / slopes[1.0].norm(), robots, 1.0)
        near, _ = objective(features, robots, 1.0)
    assert far < near, "against its gradient features raise the adversary's loss, along it they lower it"


@pytest.mark.parametrize(("schedule", "values"), [
    ("constant", (2.0, 2.0, 2.0)), ("warmup", (0.0, 1.0, 2.0)), ("ramp", (0.0, 2 * 0.462117, 2 * 0.999909)),
])  # fmt: skip
def test_schedules(schedule: str, values: tuple[float, ...]):
    config = InvarianceConfig(method="mmd", weight=2.0, schedule=schedule, warmup=0.2)  # type: ignore[arg-type]
    assert [config.strength(progress) for progress in (0.0, 0.1, 1.0)] == pytest.approx(values, abs=1e-5)


def test_metrics_and_index():
    objective = InvarianceObjective(InvarianceConfig(), 4, ROBOTS)
    index = objective.index(["widowx", "ur5e"])
    assert index.tolist() == [2, 0]
    features, robots = torch.randn(12, 4, requires_grad=True), torch.arange(12) % 3
    for method, keys in (
        ("dann", {"accuracy", "cross_entropy"}), ("mmd", {"mmd"}), ("coral", {"coral"}),
    ):  # fmt: skip
        _, metrics = InvarianceObjective(InvarianceConfig(method=method), 4, ROBOTS)(features, robots, 0.5)
        assert set(metrics) == keys | {"strength"}
        assert not any(value.requires_grad for value in metrics.values())
