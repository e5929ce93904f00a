"""Conditioning: learned vectors that the policy reads, that train and are saved with the head."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.condition import make_condition
from vla_adapt.policy.heads import HeadConfig, load_head, make_head, save_head, with_condition


def test_kinds():
    assert make_condition("none", 8, 16) is None
    token, prompt = make_condition("token", 8, 16), make_condition("soft_prompt", 8, 16)
    assert token is not None
    assert prompt is not None
    assert token(3).shape == (3, 1, 16)
    assert prompt(3).shape == (3, 8, 16)


@pytest.mark.parametrize("kind", ["parallel", "tokens"])
@pytest.mark.parametrize("condition", ["token", "soft_prompt"])
def test_it_is_read_trains_and_is_saved(tiny_model, make_batch, tmp_path, kind, condition):
    batch = make_batch(horizon=2)
    head = make_head(HeadConfig(kind=kind, horizon=2, condition=condition), tiny_model, seed=0)
    output = head(tiny_model, batch)
    output.loss_per_sample.mean().backward()
    assert head.condition is not None
    assert head.condition.vectors.grad is not None
    assert head.condition.vectors.grad.abs().sum() > 0
    save_head(head, tmp_path)
    loaded = load_head(tmp_path, tiny_model)
    assert torch.equal(loaded.predict(tiny_model, batch), head.predict(tiny_model, batch))
    with torch.no_grad():
        head.condition.vectors.add_(1.0)
    assert (head(tiny_model, batch).action_hidden - output.action_hidden).abs().max() > 1e-4


def test_a_base_head_takes_a_condition_but_no_other_change(tiny_model):
    plain = make_head(HeadConfig(kind="parallel", horizon=2), tiny_model, seed=0)
    assert with_condition(plain, plain.config, tiny_model) is plain
    config = HeadConfig(kind="parallel", horizon=2, condition="soft_prompt", condition_tokens=3)
    told = with_condition(plain, config, tiny_model)
    assert told.config == config
    assert told.condition is not None
    assert told.condition.vectors.shape == (3, 128)
    assert torch.equal(told.state_dict()["fc1.weight"], plain.state_dict()["fc1.weight"])
    with pytest.raises(ValueError, match="make them equal"):
        with_condition(plain, HeadConfig(kind="parallel", horizon=4, condition="token"), tiny_model)


def test_a_base_head_takes_what_changes_training_only_and_keeps_all_weights(tiny_model):
    config = HeadConfig(kind="parallel", horizon=2, condition="token")
    head = make_head(config, tiny_model, seed=0)
    dropping = with_condition(head, config.model_copy(update={"dropout": 0.25}), tiny_model)
    assert dropping.config.dropout == dropping.drop.p == 0.25  # type: ignore[union-attr]
    before, after = head.state_dict(), dropping.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
