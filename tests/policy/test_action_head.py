"""What all heads share: configuration, the training targets, and the proprio encoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from vla_adapt.policy.action_head import ActionHead, HeadConfig, ProprioEncoder, masked_mean
from vla_adapt.policy.heads import make_head


@pytest.mark.parametrize("wrong", [{"kind": "diffusion"}, {"horizon": 0}, {"horizn": 4}, {"hidden": 0}])
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises(ValidationError):
        HeadConfig.model_validate(wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "tokens", "placeholders": "number"}, "placeholders is a knob of the parallel head"),
        ({"kind": "parallel", "grid": 2}, "grid is a knob of the readout and flow head"),
        ({"kind": "readout", "flow_steps": 5}, "flow_steps is a knob of the flow head and has no effect on"),
        ({"kind": "tokens", "flow_layers": 1}, "flow_layers is a knob of the flow head"),
        ({"kind": "parallel", "noise_seed": 1}, "noise_seed is a knob of the flow head"),
        ({"kind": "tokens", "proprio": False, "hidden": 8}, "hidden has no effect"),
        (
            {"kind": "parallel", "label_smoothing": 0.1},
            "label_smoothing is a knob of the tokens head and has",
        ),
        ({"kind": "tokens", "dropout": 0.1}, "dropout is a knob of the parallel and readout and flow head"),
        ({"condition": "token", "condition_tokens": 4}, "condition_tokens is the length of a soft_prompt"),
    ],
)
def test_knobs_without_effect_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        HeadConfig.model_validate(given)
    HeadConfig.model_validate(HeadConfig(kind=given.get("kind", "parallel")).model_dump())


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"kind": "tokens", "label_smoothing": -0.1}])
def test_shares_lie_between_0_and_1(wrong):
    with pytest.raises(ValidationError, match=list(wrong)[-1]):
        HeadConfig.model_validate(wrong)


@pytest.mark.parametrize("kind", ["parallel", "readout", "flow"])
def test_dropout_is_of_training_only(tiny_model, make_batch, kind):
    batch = make_batch(horizon=2)
    plain, dropping = (
        make_head(HeadConfig(kind=kind, horizon=2, dropout=dropout), tiny_model, seed=0)
        for dropout in (0.0, 0.5)
    )

    def losses(head: ActionHead) -> torch.Tensor:
        torch.manual_seed(0)
        return head(tiny_model, batch).loss_per_sample

    assert not torch.equal(losses(dropping.train()), losses(plain.train()))
    assert torch.equal(losses(dropping), losses(dropping)), "the same draws from the global generator"
    assert torch.equal(losses(dropping.eval()), losses(plain.eval()))


def test_heads_that_answer_alike_are_told_by_what_they_serve():
    plain = HeadConfig(kind="readout", horizon=2)
    assert HeadConfig(kind="readout", horizon=2, dropout=0.5).served == plain
    assert HeadConfig(kind="readout", horizon=3, dropout=0.5).served != plain


def test_masked_mean_is_over_what_counts():
    errors = torch.ones(2, 3, 32)
    errors[0, 0, 0] = 5.0
    mask = torch.zeros(2, 3, 32, dtype=torch.bool)
    mask[0, 0, :2] = True
    errors[~mask] = float("nan")
    assert masked_mean(errors, mask).tolist() == [3.0, 0.0]


def test_targets_are_clean_whatever_lies_in_masked_slots(make_batch):
    batch = make_batch(horizon=4, padded_steps=2)
    batch.action = batch.action.masked_fill(~batch.action_mask, float("nan"))
    target, mask = ActionHead(HeadConfig(horizon=4), 8).targets(batch)
    assert torch.isfinite(target).all()
    assert not mask[0, 2:].any()
    assert (target[~mask] == 0).all()


def test_targets_refuse_missing_actions_and_other_horizons(make_batch):
    batch = make_batch(horizon=4)
    with pytest.raises(ValueError, match="4 action steps, this head wants 8"):
        ActionHead(HeadConfig(horizon=8), 8).targets(batch)
    with pytest.raises(ValueError, match="holds no actions"):
        ActionHead(HeadConfig(horizon=4), 8).targets(dataclasses.replace(batch, action=None))


def test_proprio_encoder_reads_the_mask_but_not_masked_values():
    encoder = ProprioEncoder(16, 32)
    values, mask = torch.randn(2, 32), torch.rand(2, 32) > 0.5
    token = encoder(values, mask)
    assert token.shape == (2, 1, 16)
    assert torch.equal(token, encoder(values.masked_fill(~mask, float("nan")), mask))
    assert not torch.equal(token, encoder(values.masked_fill(~mask, 0.0), torch.ones_like(mask)))
