"""Readout head: masked L1, exact zeros, every input and weight counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_adapt.policy.heads import HeadConfig, make_head

CONFIG = HeadConfig(kind="readout", horizon=4)
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
    head = make_head(CONFIG, tiny_model, seed=0)
    clean = head.answer_summary(batch, summary)
    batch.action = torch.where(batch.action_mask, batch.action, poison)
    output = head.answer_summary(batch, summary)
    assert torch.equal(output.loss_per_sample, clean.loss_per_sample)
    assert (output.prediction[~batch.action_mask] == 0).all()
    gradients = torch.autograd.grad(output.loss_per_sample.sum(), [head.fc2.bias, head.fc2.weight])
    used = batch.action_mask.any(dim=(0, 1))
    assert all((gradient[~used] == 0).all() for gradient in gradients)
    assert (output.loss_per_sample[~batch.action_mask.any(dim=(1, 2))] == 0).all()
    batch.summary = summary
    predicted = head.predict(tiny_model, batch)
    assert (predicted[~batch.slot_mask[:, None].expand_as(predicted)] == 0).all()


def test_loss_is_the_mean_absolute_error_of_each_sample(tiny_model, make_batch):
    batch = make_batch(padded_steps=2)
    output = make_head(CONFIG, tiny_model, seed=0)(tiny_model, batch)
    for row in range(3):
        mask = batch.action_mask[row]
        wanted = (output.prediction[row][mask] - batch.action[row][mask]).abs().mean()
        torch.testing.assert_close(output.loss_per_sample[row], wanted)


@pytest.mark.parametrize("proprio", [True, False])
def test_rows_do_not_depend_on_their_batch_mates(tiny_model, make_batch, proprio):
    batch = make_batch(robots=ROBOTS)
    config = HeadConfig(kind="readout", horizon=4, proprio=proprio)
    head = make_head(config, tiny_model, seed=0)
    together = head.predict(tiny_model, batch)
    for row in range(3):
        torch.testing.assert_close(
            head.predict(tiny_model, batch.select([row]))[0], together[row], atol=1e-4, rtol=0
        )


def test_every_input_matters_and_every_weight_learns(tiny_model, make_batch):
    batch = make_batch()
    head = make_head(CONFIG, tiny_model, seed=0)
    before = head.predict(tiny_model, batch)
    assert before.abs().max() < 0.3, "first predictions are near the middle of the range"
    assert (before[0, 0] - before[0, 1]).abs().max() > 1e-5, "steps differ"
    for name in ("pixel_values", "proprio", "input_ids"):
        changed = make_batch()
        value = getattr(changed, name).roll(1, dims=0)
        setattr(changed, name, value if name == "input_ids" else value + 0.3)
        assert (head.predict(tiny_model, changed) - before).abs().max() > 1e-5, name
    head(tiny_model, batch).loss_per_sample.mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is not None for name, p in tiny_model.named_parameters() if "lm_head" not in name)
