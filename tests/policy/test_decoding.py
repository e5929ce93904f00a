"""Greedy decoding with a cache: the original's ids and logits; independence of padding and batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_adapt.policy.decoding import greedy_decode


@pytest.mark.parametrize("row", [0, 1])
def test_parity_of_ids_and_step_logits(parity, parity_model, row):
    ids = torch.from_numpy(parity.inputs["gen_input_ids"])
    pixel_values = torch.from_numpy(parity.inputs["pixel_values"])[row : row + 1]
    with torch.no_grad():
        patches = parity_model.project(pixel_values)
    tokens, logits = greedy_decode(parity_model, ids, torch.ones_like(ids), patches, steps=7)
    assert tokens[0].tolist() == parity.expected[f"gen{row}/ids"].tolist()
    np.testing.assert_allclose(logits[0], parity.expected[f"gen{row}/step_logits"], atol=1e-4, rtol=0)


def test_padded_rows_decode_as_they_do_alone_and_as_without_cache(tiny_model, make_batch):
    batch = make_batch(robots=("franka_panda",) * 3)
    with torch.no_grad():
        patches = tiny_model.project(batch.pixel_values)
    tokens, logits = greedy_decode(tiny_model, batch.input_ids, batch.attention_mask, patches, steps=5)
    for row in range(3):
        ids = batch.input_ids[row : row + 1, : int(batch.attention_mask[row].sum())]
        for step in range(5):
            output = tiny_model(ids, None, batch.pixel_values[row : row + 1])
            torch.testing.assert_close(output.logits[0, -1], logits[row, step], atol=2e-4, rtol=0)
            ids = torch.cat([ids, tokens[row, step].view(1, 1)], dim=1)


def test_choice_can_be_restricted(tiny_model, make_batch):
    batch = make_batch()
    with torch.no_grad():
        patches = tiny_model.project(batch.pixel_values)
    tokens, logits = greedy_decode(
        tiny_model, batch.input_ids, batch.attention_mask, patches, steps=4, allowed=slice(256, 512)
    )
    assert ((tokens >= 256) & (tokens < 512)).all()
    assert torch.equal(tokens[:, 0], 256 + logits[:, 0, 256:512].argmax(dim=1))
