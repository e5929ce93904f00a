"""One pass over rows of several robots equals a pass per robot; missing cameras are not seen."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vla_adapt.policy.backbone import Question, join, look, see
from vla_adapt.policy.heads import HeadConfig, make_head

ROBOTS = ("franka_panda", "franka_panda", "mobile_panda", "base_only")
CONFIGS = [
    HeadConfig(kind="parallel", horizon=4),
    HeadConfig(kind="parallel", horizon=4, placeholders="number", condition="soft_prompt"),
    HeadConfig(kind="tokens", horizon=1, proprio=False),
    HeadConfig(kind="tokens", horizon=2, condition="token"),
]


def trimmed(batch):
    length = int(batch.attention_mask.sum(dim=1).max())
    return dataclasses.replace(
        batch, input_ids=batch.input_ids[:, :length], attention_mask=batch.attention_mask[:, :length]
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.kind}-{config.condition}")
def test_one_joint_pass_answers_as_a_pass_per_robot(tiny_model, make_batch, config):
    batch = make_batch(horizon=config.horizon, robots=ROBOTS)
    segments = batch.segments()
    heads = [make_head(config, tiny_model, seed=seed) for seed in range(3)]
    parts = [trimmed(batch.rows(rows)) for _, rows in segments]
    questions = [head.ask(tiny_model, part) for head, part in zip(heads, parts, strict=True)]
    seen = look(tiny_model, batch, join(questions, tiny_model.config.pad_token_id))
    for head, part, question, (_, rows) in zip(heads, parts, questions, segments, strict=True):
        alone = head(tiny_model, part)
        joint = head.answer(tiny_model, part, question, seen.rows(rows))
        torch.testing.assert_close(joint.loss_per_sample, alone.loss_per_sample, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(joint.prediction, alone.prediction, atol=1e-5, rtol=0)
        torch.testing.assert_close(joint.action_hidden, alone.action_hidden, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["parallel", "tokens"])
def test_a_missing_camera_is_not_seen_and_a_present_one_is(tiny_model, make_batch, kind):
    batch = make_batch(horizon=2)
    head = make_head(HeadConfig(kind=kind, horizon=2), tiny_model, seed=0)
    wrist = torch.randn(3, 6, 84, 84, generator=torch.Generator().manual_seed(5))
    two = dataclasses.replace(
        batch,
        pixel_values=torch.cat([batch.pixel_values, wrist], dim=1),
        camera_mask=torch.tensor([[True, True], [True, False], [True, True]]),
    )
    assert see(tiny_model, two).shape == (3, 72, 128)
    other = dataclasses.replace(two, pixel_values=two.pixel_values.clone())
    other.pixel_values[:, 6:] += 1.0
    before, after = head(tiny_model, two), head(tiny_model, other)
    moved = (before.action_hidden - after.action_hidden).abs().amax(dim=(1, 2))
    assert moved[1] == 0
    assert (moved[[0, 2]] > 1e-4).all()
    assert torch.equal(head.predict(tiny_model, two)[1], head.predict(tiny_model, other)[1])


def test_frozen_vision_keeps_nothing_for_the_backward_pass(tiny_model, make_batch):
    batch = make_batch()
    assert see(tiny_model, batch).requires_grad
    tiny_model.vision_backbone.requires_grad_(False)
    tiny_model.projector.requires_grad_(False)
    assert not tiny_model.vision_trains
    assert not see(tiny_model, batch).requires_grad


def test_texts_and_extra_tokens_are_padded_to_the_longest():
    short = Question(
        torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), None, torch.ones(1, 2, 4)
    )
    long = Question(
        torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool), None, torch.ones(2, 3, 4)
    )
    both = join([short, long], pad_token_id=9)
    assert both.input_ids[0].tolist() == [1, 1, 1, 9, 9]
    assert both.attention_mask.sum(dim=1).tolist() == [3, 5, 5]
    assert both.extra_valid is not None
    assert both.extra_valid.sum(dim=1).tolist() == [2, 3, 3]
    assert join([short], 9) is short
