"""Flow head: the flow matching loss, exact zeros, predictions that repeat, noise that flows to the action."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_adapt.policy.flow_head import time_code, training_times
from vla_adapt.policy.heads import HeadConfig, make_head

CONFIG = HeadConfig(kind="flow", horizon=4)
SMALL = HeadConfig(kind="flow", horizon=4, hidden=32, flow_layers=1, flow_steps=3)
ROBOTS = ("franka_panda", "mobile_panda", "base_only")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), density=st.floats(0, 1), poison=st.sampled_from([0.0, 7.0, float("nan")]))
def test_masked_slots_give_exactly_zero_loss_gradient_and_prediction(
    tiny_model, make_batch, seed, density, poison
):
    batch = make_batch(robots=ROBOTS, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    batch.action_mask &= torch.rand(batch.action.shape, generator=draw) < density
    summary = torch.randn(3, 17, 128, generator=draw)
    head = make_head(SMALL, tiny_model, seed=0)
    torch.manual_seed(seed)
    clean = head.answer_summary(batch, summary)
    batch.action = torch.where(batch.action_mask, batch.action, poison)
    torch.manual_seed(seed)
    output = head.answer_summary(batch, summary)
    assert torch.equal(output.loss_per_sample, clean.loss_per_sample)
    assert (output.prediction[~batch.action_mask] == 0).all()
    wanted = [head.expert.leave.bias, head.expert.leave.weight, head.expert.enter.weight]
    gradients = torch.autograd.grad(output.loss_per_sample.sum(), wanted)
    used = batch.action_mask.any(dim=(0, 1))
    assert (gradients[0][~used] == 0).all()
    assert (gradients[1][~used] == 0).all()
    assert (gradients[2][:, :32][:, ~used] == 0).all(), "no noise goes in there"
    assert (output.loss_per_sample[~batch.action_mask.any(dim=(1, 2))] == 0).all()
    batch.summary = summary
    predicted = head.predict(tiny_model, batch)
    assert (predicted[~batch.slot_mask[:, None].expand_as(predicted)] == 0).all()


def test_loss_is_the_squared_error_of_the_velocity(tiny_model, make_batch):
    """Computed anew from the same draws, on one row with unmasked numbers only."""
    batch = make_batch(robots=ROBOTS, padded_steps=2)
    summary = torch.randn(3, 17, 128)
    head = make_head(CONFIG, tiny_model, seed=0)
    torch.manual_seed(5)
    loss = head.answer_summary(batch, summary).loss_per_sample
    torch.manual_seed(5)
    noise, time = torch.randn(3, 4, 32), training_times(3, torch.device("cpu"))
    noise[~batch.action_mask] = 0
    chunk = time[:, None, None] * batch.action + (1 - time[:, None, None]) * noise
    expected = head.expert(chunk, batch.slot_mask, time, head.reader(batch, summary))
    velocity = (expected - chunk) / (1 - time[:, None, None])
    for row in range(3):
        mask = batch.action_mask[row]
        wanted = ((velocity[row] - batch.action[row] + noise[row])[mask] ** 2).mean()
        torch.testing.assert_close(loss[row], wanted)


def test_a_perfect_expert_brings_the_noise_to_the_action(tiny_model, make_batch, monkeypatch):
    """Euler steps towards a known chunk end there; times later than trained are told as the latest."""
    batch = make_batch(robots=ROBOTS)
    head = make_head(CONFIG, tiny_model, seed=0)
    seen = []

    def perfect(chunk, slot_mask, time, context):
        seen.append(time[0].item())
        return batch.action + 9.0 * ~slot_mask[:, None]

    monkeypatch.setattr(head.expert, "forward", perfect)
    batch.summary = torch.zeros(3, 17, 128)
    torch.testing.assert_close(head.predict(tiny_model, batch), batch.action, atol=1e-5, rtol=0)
    assert seen == pytest.approx([step / 10 for step in range(10)])
    head.config = HeadConfig(kind="flow", horizon=4, flow_steps=20)
    torch.testing.assert_close(head.predict(tiny_model, batch), batch.action, atol=1e-5, rtol=0)
    assert seen[10:] == pytest.approx([min(step / 20, 0.9) for step in range(20)])


def test_predictions_repeat_and_the_noise_is_saved(tiny_model, make_batch):
    batch = make_batch(robots=("franka_panda",) * 2)
    batch.summary = torch.randn(1, 17, 128).expand(2, -1, -1)
    batch.proprio[1] = batch.proprio[0]
    head = make_head(CONFIG, tiny_model, seed=0)
    first = head.predict(tiny_model, batch)
    torch.manual_seed(99)
    assert torch.equal(head.predict(tiny_model, batch), first)
    assert torch.equal(first[0], first[1]), "the same noise for each row"
    other = make_head(HeadConfig(kind="flow", horizon=4, noise_seed=1), tiny_model, seed=0)
    assert not torch.equal(other.predict(tiny_model, batch), first)
    assert "noise" in head.state_dict()
    more = make_head(HeadConfig(kind="flow", horizon=4, flow_steps=40), tiny_model, seed=0)
    assert not torch.equal(more.predict(tiny_model, batch), first)


def test_training_times_follow_the_beta_distribution():
    torch.manual_seed(0)
    times = training_times(200_000, torch.device("cpu"))
    assert 0 <= times.min() <= times.max() <= 0.9
    x = 1 - times / 0.9  # Beta(1.5, 1): mean 3/5, P(x < 1/2) = (1/2)^1.5
    assert x.mean().item() == pytest.approx(0.6, abs=3e-3)
    assert (x < 0.5).float().mean().item() == pytest.approx(0.5**1.5, abs=5e-3)


def test_time_codes_tell_times_apart():
    codes = time_code(torch.linspace(0, 1, 101), 33)
    assert codes.shape == (101, 33)
    distances = torch.cdist(codes, codes) + 9 * torch.eye(101)
    assert distances.min() > 0.05
    assert time_code(torch.tensor([0.25]), 4)[0, 1].item() == pytest.approx(math.sin(math.pi / 8))


def test_every_input_matters_and_every_weight_learns(tiny_model, make_batch):
    batch = make_batch()
    head = make_head(CONFIG, tiny_model, seed=0)
    before = head.predict(tiny_model, batch)
    for name in ("pixel_values", "proprio"):
        changed = make_batch()
        setattr(changed, name, getattr(changed, name).roll(1, dims=0) + 0.3)
        assert (head.predict(tiny_model, changed) - before).abs().max() > 1e-5, name
    head(tiny_model, batch).loss_per_sample.mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is not None for name, p in tiny_model.named_parameters() if "lm_head" not in name)
