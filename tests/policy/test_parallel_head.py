"""Parallel head: masked L1, exact zeros, independence of padding and batch mates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_adapt.policy.heads import HeadConfig, make_head

CONFIG = HeadConfig(kind="parallel", horizon=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), density=st.floats(0, 1), poison=st.sampled_from([0.0, 7.0, float("nan")]))
def test_masked_slots_give_exactly_zero_loss_gradient_and_prediction(
    tiny_model, make_batch, seed, density, poison
):
    batch = make_batch(robots=("franka_panda", "mobile_panda", "base_only"), seed=seed)
    keep = torch.rand(batch.action.shape, generator=torch.Generator().manual_seed(seed)) < density
    batch.action_mask = batch.action_mask & keep
    head = make_head(CONFIG, tiny_model, seed=0)
    clean = head(tiny_model, batch)
    batch.action = torch.where(batch.action_mask, batch.action, poison)
    output = head(tiny_model, batch)
    assert torch.equal(output.loss_per_sample, clean.loss_per_sample)
    assert (output.prediction[~batch.action_mask] == 0).all()
    (gradient,) = torch.autograd.grad(output.loss_per_sample.sum(), head.fc2.bias)
    used = batch.action_mask.any(dim=(0, 1))
    assert (gradient[~used] == 0).all()
    rows = ~batch.action_mask.any(dim=(1, 2))
    assert (output.loss_per_sample[rows] == 0).all()
    predicted = head.predict(tiny_model, batch)
    assert (predicted[~batch.slot_mask[:, None].expand_as(predicted)] == 0).all()


def test_loss_is_the_mean_absolute_error_of_each_sample(tiny_model, make_batch):
    batch = make_batch(padded_steps=2)
    head = make_head(CONFIG, tiny_model, seed=0)
    output = head(tiny_model, batch)
    for row in range(3):
        mask = batch.action_mask[row]
        wanted = (output.prediction[row][mask] - batch.action[row][mask]).abs().mean()
        torch.testing.assert_close(output.loss_per_sample[row], wanted)
    assert output.patches.shape == (3, 36, 128)
    assert output.action_hidden.shape == (3, 4, 128)


@pytest.mark.parametrize("proprio", [True, False])
def test_rows_do_not_depend_on_their_batch_mates(tiny_model, make_batch, proprio):
    batch = make_batch(robots=("franka_panda", "mobile_panda", "base_only"))
    head = make_head(HeadConfig(kind="parallel", horizon=4, proprio=proprio), tiny_model, seed=0)
    together = head.predict(tiny_model, batch)
    for row in range(3):
        alone = batch.select([row])
        length = int(alone.attention_mask.sum())
        alone.input_ids, alone.attention_mask = alone.input_ids[:, :length], alone.attention_mask[:, :length]
        torch.testing.assert_close(head.predict(tiny_model, alone)[0], together[row], atol=1e-4, rtol=0)


def test_every_input_matters_and_every_weight_learns(tiny_model, make_batch):
    batch = make_batch()
    head = make_head(CONFIG, tiny_model, seed=0)
    before = head.predict(tiny_model, batch)
    for name in ("pixel_values", "proprio"):
        changed = make_batch()
        setattr(changed, name, getattr(changed, name).roll(1, dims=0) + 0.3)
        assert (head.predict(tiny_model, changed) - before).abs().max() > 1e-5, name
    head(tiny_model, batch).loss_per_sample.mean().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(p.grad is not None for name, p in tiny_model.named_parameters() if "lm_head" not in name)


def test_first_predictions_are_near_the_middle_of_the_range(tiny_model, make_batch):
    head = make_head(CONFIG, tiny_model, seed=0)
    assert head.predict(tiny_model, make_batch()).abs().max() < 0.3


def test_placeholders_per_number_answer_each_of_the_robots_slots(tiny_model, make_batch):
    batch = make_batch(robots=("mobile_panda",) * 2)
    config = HeadConfig(kind="parallel", horizon=4, placeholders="number")
    head = make_head(config, tiny_model, seed=0)
    question = head.ask(tiny_model, batch)
    assert question.extra.shape == (2, 1 + 4 * 10, 128)
    output = head(tiny_model, batch)
    assert output.action_hidden.shape == (2, 40, 128)
    output.loss_per_sample.mean().backward()
    used = batch.slot_mask[0]
    assert (head.slots.grad[~used] == 0).all()
    assert (head.slots.grad[used].abs().sum(dim=1) > 0).all()
    mixed = make_batch(robots=("mobile_panda", "franka_panda"))
    with pytest.raises(ValueError, match="rows of several"):
        head.ask(tiny_model, mixed)
