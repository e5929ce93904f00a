"""Attention masks and positions of the sequence [BOS, patches, text, extra] under right padding.

Padding sits between text and extra tokens, so extra tokens take the positions that follow the row's own text,
and nothing attends to padding. Positions of text are consecutive, padding included, as in the original.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Shaped


def right_padded(attention_mask: Shaped[torch.Tensor, "B T"]) -> Bool[torch.Tensor, "B T"]:
    """The mask as bool, checked.

    Raises:
        ValueError: when a row has padding before text (left padding).
    """
    mask = attention_mask.bool()
    if (mask.shape[1] > 1 and bool((mask[:, 1:] & ~mask[:, :-1]).any())) or not bool(mask[:, 0].all()):
        raise ValueError(
            "attention_mask has padding before text; wanted right-padded rows that start with text"
        )
    return mask


def valid_positions(
    attention_mask: Bool[torch.Tensor, "B T"],
    patches: int,
    extra: int = 0,
    patches_valid: Bool[torch.Tensor, "B P"] | None = None,
    extra_valid: Bool[torch.Tensor, "B K"] | None = None,
) -> Bool[torch.Tensor, "B L"]:
    """Which positions of [BOS, patches, text, extra] are not padding; None for a part: all of it counts."""
    ones = attention_mask.new_ones(len(attention_mask), patches + extra)
    image = ones[:, :patches] if patches_valid is None else patches_valid
    last = ones[:, patches:] if extra_valid is None else extra_valid
    return torch.cat([attention_mask[:, :1], image, attention_mask[:, 1:], last], dim=1)


def position_ids(
    attention_mask: Bool[torch.Tensor, "B T"], patches: int, extra: int = 0
) -> Int[torch.Tensor, "B L"]:
    """Rotary positions of [BOS, patches, text, extra]."""
    batch, text = attention_mask.shape
    start = torch.arange(patches + text, device=attention_mask.device).expand(batch, -1)
    if not extra:
        return start
    after = patches + attention_mask.sum(dim=1, keepdim=True)
    return torch.cat([start, after + torch.arange(extra, device=attention_mask.device)], dim=1)


def attention_pattern(
    valid: Bool[torch.Tensor, "B L"], holes: bool, bidirectional: bool
) -> Bool[torch.Tensor, "B 1 Q L"] | None:
    """The 4-D mask for SDPA, True = attend; None: a kernel without a mask will do, causal or full.

    Args:
        valid: which positions are not padding.
        holes: whether any position attends to padding unless told not to. Under causal attention padding at
            the end does not count: only padding itself comes after it.
        bidirectional: full attention instead of causal.
    """
    if not holes:
        return None
    keys = valid[:, None, None, :]
    if bidirectional:
        return keys
    length = valid.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()[None, None] & keys
