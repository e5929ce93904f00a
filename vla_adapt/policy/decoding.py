"""Greedy decoding of action tokens with a key-value cache, for batches of right-padded prompts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from transformers import DynamicCache

from vla_adapt.policy.sequence import attention_pattern, position_ids, right_padded, valid_positions


@torch.no_grad()
def greedy_decode(
    model: Any,
    input_ids: Int[torch.Tensor, "B T"],
    attention_mask: Shaped[torch.Tensor, "B T"],
    patches: Float[torch.Tensor, "B P D"],
    steps: int,
    allowed: slice | None = None,
    patches_valid: Bool[torch.Tensor, "B P"] | None = None,
) -> tuple[Int[torch.Tensor, "B steps"], Float[torch.Tensor, "B steps V"]]:
    """The most likely next `steps` tokens after each prompt, and the logits they were chosen from.

    Args:
        model: an `OpenVLA`, adapters included (its module imports this one).
        input_ids: prompts, right-padded.
        attention_mask: True on text.
        patches: projected patches (and any other prefix tokens) that follow BOS.
        steps: tokens to decode for every row.
        allowed: restrict the choice to this range of ids; None chooses among all.
        patches_valid: which of `patches` are attended to; None: all.
    """
    mask = right_padded(attention_mask)
    valid = valid_positions(mask, patches.shape[1], patches_valid=patches_valid)
    padded = not bool(mask.all()) or patches_valid is not None
    decoder, lm_head = model.language_model.model, model.language_model.lm_head
    cache = DynamicCache(config=decoder.config)
    hidden = decoder(
        inputs_embeds=model.embed(input_ids, patches),
        attention_mask=attention_pattern(valid, padded, bidirectional=False),
        position_ids=position_ids(mask, patches.shape[1]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    position = patches.shape[1] + mask.sum(dim=1)  # of the next token
    hidden = hidden[torch.arange(len(hidden), device=hidden.device), position - 1]
    ids, all_logits = [], []
    for step in range(steps):
        logits = lm_head(hidden).float()
        start = 0 if allowed is None else allowed.start
        ids.append(start + logits[:, allowed or slice(None)].argmax(dim=1))
        all_logits.append(logits)
        if step + 1 == steps:
            break
        valid = torch.cat([valid, valid.new_ones(len(valid), 1)], dim=1)
        hidden = decoder(
            input_ids=ids[-1][:, None],
            attention_mask=valid[:, None, None, :] if padded else None,
            position_ids=(position + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    return torch.stack(ids, dim=1), torch.stack(all_logits, dim=1)
