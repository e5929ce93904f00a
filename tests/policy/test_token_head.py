"""Token head: the original's loss, robots of different sizes in one batch, masked slots."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from vla_adapt.policy.backbone import look
from vla_adapt.policy.heads import HeadConfig, make_head

ROBOTS = ("franka_panda", "mobile_panda", "base_only")


def test_loss_is_the_originals_on_the_originals_sequence(tiny_model, make_batch):
    batch = make_batch(horizon=1, robots=ROBOTS)
    output = make_head(HeadConfig(kind="tokens", horizon=1, proprio=False), tiny_model)(tiny_model, batch)
    tokenizer = tiny_model.action_tokenizer()
    for row in range(3):
        prompt = batch.input_ids[row, : int(batch.attention_mask[row].sum())]
        numbers = batch.action[row, 0][batch.slot_mask[row]]
        answer = torch.tensor([*tokenizer.encode(numbers.numpy()), 2])
        ids = torch.cat([prompt, answer])[None]
        labels = torch.cat([torch.full_like(prompt, -100), answer])[None]
        wanted = tiny_model(ids, None, batch.pixel_values[row : row + 1], labels)
        torch.testing.assert_close(output.loss_per_sample[row], wanted.loss, atol=1e-4, rtol=1e-4)
        chosen = wanted.logits[0, 36 + len(prompt) - 1 : -2, 256:512].argmax(dim=1) + 256
        decoded = torch.from_numpy(tokenizer.decode(chosen.numpy())).float()
        torch.testing.assert_close(output.prediction[row, 0][batch.slot_mask[row]], decoded)


def test_it_has_no_weights_unless_it_reads_proprio(tiny_model):
    plain = make_head(HeadConfig(kind="tokens", horizon=1, proprio=False), tiny_model)
    assert list(plain.parameters()) == []
    assert len(list(make_head(HeadConfig(kind="tokens", proprio=True), tiny_model).parameters())) == 4


@pytest.mark.parametrize("proprio", [True, False])
@pytest.mark.parametrize("horizon", [1, 3])
def test_prediction_fills_exactly_the_robots_slots(tiny_model, make_batch, horizon, proprio):
    batch = make_batch(horizon=horizon, robots=ROBOTS)
    head = make_head(HeadConfig(kind="tokens", horizon=horizon, proprio=proprio), tiny_model, seed=0)
    predicted = head.predict(tiny_model, dataclasses.replace(batch, action=None, action_mask=None))
    assert torch.equal(predicted != 0, batch.slot_mask[:, None].expand(3, horizon, 32))
    for row in range(3):
        torch.testing.assert_close(head.predict(tiny_model, batch.select([row]))[0], predicted[row])


def test_predicting_own_output_is_consistent_with_teacher_forcing(tiny_model, make_batch):
    batch = make_batch(horizon=2, robots=ROBOTS)
    head = make_head(HeadConfig(kind="tokens", horizon=2, proprio=True), tiny_model, seed=0)
    batch.action = head.predict(tiny_model, batch)
    output = head(tiny_model, batch)
    torch.testing.assert_close(output.prediction, batch.action)
    assert output.action_hidden.shape == (3, 2, 128)
    assert output.patches.shape == (3, 36, 128)


@pytest.mark.parametrize("poison", [0.9, float("nan")])
def test_masked_numbers_change_nothing(tiny_model, make_batch, poison):
    batch = make_batch(horizon=3, robots=ROBOTS, padded_steps=2)
    batch.action_mask[1] = False
    head = make_head(HeadConfig(kind="tokens", horizon=3, proprio=False), tiny_model)
    clean = head(tiny_model, batch)
    batch.action = torch.where(batch.action_mask, batch.action, poison)
    output = head(tiny_model, batch)
    assert torch.equal(output.loss_per_sample, clean.loss_per_sample)
    assert output.loss_per_sample[1] == 0
    assert (output.prediction[~batch.action_mask] == 0).all()


def test_steps_past_the_end_do_not_teach_the_end_of_sequence(tiny_model, make_batch):
    """The loss of a cut chunk is the mean over the tokens that are there, without EOS."""
    batch = make_batch(horizon=2, robots=("franka_panda",), padded_steps=1)
    head = make_head(HeadConfig(kind="tokens", horizon=2, proprio=False), tiny_model)
    short = dataclasses.replace(batch, action=batch.action[:, :1], action_mask=batch.action_mask[:, :1])
    one_step = make_head(HeadConfig(kind="tokens", horizon=1, proprio=False), tiny_model)(tiny_model, short)
    two_steps = head(tiny_model, batch)
    eos = one_step.loss_per_sample * 8 - two_steps.loss_per_sample * 7
    assert eos.item() > 0.5
    torch.testing.assert_close(two_steps.prediction[:, 0], one_step.prediction[:, 0])


def test_label_smoothing_spreads_labels_over_the_bins_only(tiny_model, make_batch):
    """Against cross-entropy with soft labels that are written out; EOS keeps its hard label."""
    batch = make_batch(horizon=2, robots=ROBOTS, padded_steps=1)
    share = 0.2
    config = HeadConfig(kind="tokens", horizon=2, proprio=False, label_smoothing=share)
    head = make_head(config, tiny_model).train()
    question = head.ask(tiny_model, batch)
    seen = look(tiny_model, batch, dataclasses.replace(question, read=None))
    codec, labels = tiny_model.action_tokenizer(), question.labels
    wanted = []
    for row in range(3):
        first = seen.patches.shape[1] + int(batch.attention_mask[row].sum()) - 1
        places = labels[row] >= 0
        hidden = seen.hidden[row, first : first + len(places)][places]
        logits, own = tiny_model.language_model.lm_head(hidden), labels[row][places]
        soft = nn.functional.one_hot(own, logits.shape[1]).double()
        action = own >= codec.first_id
        assert action.sum() >= len(own) - 1
        soft[action] *= 1 - share
        soft[action, codec.first_id : codec.vocab_size] += share / 256
        assert torch.allclose(soft.sum(dim=1), torch.ones(len(own)).double())
        wanted.append(-(soft * logits.double().log_softmax(dim=1)).sum(dim=1).mean())
    got = head.answer(tiny_model, batch, question, look(tiny_model, batch, question)).loss_per_sample
    torch.testing.assert_close(got.double(), torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_without_smoothing_and_in_eval_mode_the_loss_is_the_plain_one(tiny_model, make_batch):
    batch = make_batch(horizon=2, robots=ROBOTS)
    plain, smooth = (
        make_head(
            HeadConfig(kind="tokens", horizon=2, proprio=False, label_smoothing=share), tiny_model, seed=0
        )
        for share in (0.0, 0.2)
    )
    loss = plain.eval()(tiny_model, batch).loss_per_sample
    assert torch.equal(plain.train()(tiny_model, batch).loss_per_sample, loss)
    assert torch.equal(smooth.eval()(tiny_model, batch).loss_per_sample, loss)
    assert not torch.equal(smooth.train()(tiny_model, batch).loss_per_sample, loss)
