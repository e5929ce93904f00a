"""Schedule by steps, clipping per robot."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.training.optimizer import OptimizerConfig, clip_per_robot, make_optimizer, saved_by_8_bits


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


def trained_by(kind: str) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    """30 steps towards ones from the same numbers, of a tensor large enough for 8 bits."""
    draw = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(128, 64, generator=draw))
    config = OptimizerConfig(kind=kind, learning_rate=1e-2, schedule="constant", warmup_steps=0)  # type: ignore[arg-type]
    optimizer, _ = make_optimizer(config, {"robot": [parameter]}, steps=30)
    for _ in range(30):
        (parameter - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer, parameter.detach()


def test_moments_in_8_bits_take_a_quarter_and_go_nearly_the_same_way(tmp_path):
    pytest.importorskip("bitsandbytes")
    start = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    whole, small = trained_by("adamw"), trained_by("adamw_8bit")
    assert (whole[1] - small[1]).norm() < 0.05 * (whole[1] - start).norm()
    assert not torch.equal(whole[1], small[1])
    torch.save(small[0].state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    small[0].load_state_dict(state)
    moments = small[0].state[small[0].param_groups[0]["params"][0]]
    assert moments["state1"].dtype == torch.uint8
    config = OptimizerConfig(kind="adamw_8bit")
    held = sum(
        moments[name].numel() * moments[name].itemsize for name in ("state1", "state2", "absmax1", "absmax2")
    )
    assert 2 * 4 * 128 * 64 - saved_by_8_bits(config, [torch.nn.Parameter(small[1])]) == held


def test_tensors_that_stay_in_32_bits_save_nothing():
    small, large = torch.nn.Parameter(torch.zeros(4095)), torch.nn.Parameter(torch.zeros(4096))
    assert saved_by_8_bits(OptimizerConfig(kind="adamw_8bit"), [small]) == 0
    assert saved_by_8_bits(OptimizerConfig(kind="adamw_8bit"), [small, large]) == 8 * 4096 - 2 * 4096 - 2 * 64
    assert saved_by_8_bits(OptimizerConfig(), [large]) == 0
