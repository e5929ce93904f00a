"""Summaries: what they hold, and that a head answers from one as it does from the backbone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vla_adapt.policy.backbone import join, look
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.summary_head import MAX_CAMERAS

ROBOTS = ("franka_panda", "mobile_panda", "base_only")
KINDS = ("readout", "flow")


def summary_of(head, model, batch):
    with torch.no_grad():
        return head.summarize(model, batch, look(model, batch, head.ask(model, batch)))


def test_a_summary_is_the_pooled_patches_and_the_last_text_token(tiny_model, make_batch):
    batch = make_batch(robots=ROBOTS)
    head = make_head(HeadConfig(kind="readout", horizon=4, grid=3), tiny_model, seed=0)
    summary = summary_of(head, tiny_model, batch)
    assert summary.shape == (3, 9 + 1, 128)
    for row in range(3):
        length = int(batch.attention_mask[row].sum())
        ids, mask = batch.input_ids[row : row + 1, :length], batch.attention_mask[row : row + 1, :length]
        hidden = tiny_model.encode(ids, mask, batch.pixel_values[row : row + 1])[0]
        torch.testing.assert_close(summary[row, -1], hidden[-1], atol=1e-4, rtol=1e-4)
        corner = hidden[1:37].view(6, 6, 128)[:2, 2:4].mean(dim=(0, 1))  # cell 1 of 3 x 3 over 6 x 6 patches
        torch.testing.assert_close(summary[row, 1], corner, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_holds_its_summary_needs_no_backbone(tiny_model, make_batch, monkeypatch, kind):
    batch = make_batch(robots=ROBOTS)
    head = make_head(HeadConfig(kind=kind, horizon=4), tiny_model, seed=0)
    torch.manual_seed(3)
    seen = head(tiny_model, batch)
    kept = dataclasses.replace(batch, summary=summary_of(head, tiny_model, batch))
    kept.pixel_values, kept.input_ids = torch.zeros(3, 0, 0, 0), torch.zeros(3, 0, dtype=torch.long)
    torch.manual_seed(3)
    answered = head.answer_summary(kept, kept.summary)
    assert torch.equal(answered.loss_per_sample, seen.loss_per_sample)
    assert torch.equal(answered.prediction, seen.prediction)
    assert answered.patches.shape == (3, 0, 128)
    assert seen.patches.shape == (3, 36, 128)
    assert seen.action_hidden.shape == answered.action_hidden.shape == (3, 1, 128)
    predicted = head.predict(tiny_model, batch)
    monkeypatch.setattr(tiny_model, "encode", None)
    assert torch.equal(head.predict(tiny_model, kept), predicted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", ["token", "soft_prompt"])
def test_conditions_reach_the_summary_and_learn(tiny_model, make_batch, kind, condition):
    batch = make_batch(robots=("franka_panda",) * 2)
    head = make_head(HeadConfig(kind=kind, horizon=4, condition=condition), tiny_model, seed=0)
    plain = make_head(HeadConfig(kind=kind, horizon=4), tiny_model, seed=0)
    ours, without = (summary_of(each, tiny_model, batch) for each in (head, plain))
    assert torch.equal(ours[:, :-1], without[:, :-1]), "patches come before the condition"
    assert (ours[:, -1] - without[:, -1]).abs().max() > 1e-4
    tiny_model.requires_grad_(False)
    head(tiny_model, batch).loss_per_sample.mean().backward()
    assert head.condition.vectors.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_camera_changes_nothing_whatever_its_pixels(tiny_model, make_batch, kind):
    batch = make_batch(robots=ROBOTS)
    head = make_head(HeadConfig(kind=kind, horizon=4), tiny_model, seed=0)
    alone = head.predict(tiny_model, batch)
    two = make_batch(robots=ROBOTS)
    two.pixel_values = torch.cat([two.pixel_values, torch.randn_like(two.pixel_values)], dim=1)
    both = head.predict(tiny_model, two)
    assert (both - alone).abs().max() > 1e-5
    two.camera_mask = torch.tensor([[True, False], [True, True], [True, False]])
    seen = head.predict(tiny_model, two)
    two.pixel_values[:, 6:] *= torch.tensor([7.0, 1.0, 7.0])[:, None, None, None]
    torch.testing.assert_close(head.predict(tiny_model, two), seen, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], both[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_of_several_robots_join(tiny_model, make_batch, kind):
    """Texts of one robot are padded to another's; its summary stays."""
    batch = make_batch(robots=ROBOTS)
    head = make_head(HeadConfig(kind=kind, horizon=4, condition="token"), tiny_model, seed=0)
    parts = []
    for row in range(3):
        part = batch.rows(slice(row, row + 1))
        length = int(part.attention_mask.sum())
        part.input_ids, part.attention_mask = part.input_ids[:, :length], part.attention_mask[:, :length]
        parts.append(part)
    questions = [head.ask(tiny_model, part) for part in parts]
    with torch.no_grad():
        seen = look(tiny_model, batch, join(questions, tiny_model.config.pad_token_id))
        for row, part in enumerate(parts):
            together = head.summarize(tiny_model, part, seen.rows(slice(row, row + 1)))
            torch.testing.assert_close(together, summary_of(head, tiny_model, part), atol=1e-4, rtol=1e-4)


def test_summaries_that_do_not_fit_are_refused(tiny_model, make_batch):
    batch = make_batch()
    head = make_head(HeadConfig(kind="readout", horizon=4), tiny_model, seed=0)
    for vectors in (10, 1, (MAX_CAMERAS + 1) * 16 + 1):
        with pytest.raises(ValueError, match=f"a summary of {vectors} vectors; wanted 4x4 cells"):
            head.predict_summary(batch, torch.zeros(3, vectors, 128))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_wide_models_stay_small(tiny_model, kind):
    assert make_head(HeadConfig(kind=kind), tiny_model).inner_width == {"readout": 64, "flow": 128}[kind]
    tiny_model.config.text["hidden_size"] = 4096
    wide = make_head(HeadConfig(kind=kind, flow_layers=1 if kind == "flow" else 3), tiny_model)
    assert wide.inner_width == 512
    assert sum(parameter.numel() for parameter in wide.parameters()) < 8e6
