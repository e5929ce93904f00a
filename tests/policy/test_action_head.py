"""What all heads share: configuration, the training targets, and the proprio encoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from vla_adapt.policy.action_head import ActionHead, HeadConfig, ProprioEncoder


@pytest.mark.parametrize("wrong", [{"kind": "diffusion"}, {"horizon": 0}, {"horizn": 4}, {"hidden": 0}])
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises(ValidationError):
        HeadConfig.model_validate(wrong)


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
