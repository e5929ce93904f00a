"""One pass of the backbone over a batch that mixes robots: what heads ask of it, and what they get to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA


@dataclass
class Question:
    """The sequence a head wants run: [BOS, patches, prefix, rest of the text, extra].

    `extra_valid` is False on extra tokens that are only there to make rows equally long; None: none are.
    `read` says what the head looks at, so that the last layer works for that alone: places in the text or
    "extra", the extra tokens; None: everything.
    """

    input_ids: Int[torch.Tensor, "B T"]
    attention_mask: Bool[torch.Tensor, "B T"]
    prefix: Float[torch.Tensor, "B N D"] | None = None
    extra: Float[torch.Tensor, "B K D"] | None = None
    extra_valid: Bool[torch.Tensor, "B K"] | None = None
    bidirectional: bool = False
    read: Int[torch.Tensor, "B R"] | Literal["extra"] | None = None


@dataclass
class Seen:
    """What the backbone made of a question: final hidden states and, as `patches`, its projected input.

    `hidden` holds the positions that the question reads, in its order; where it reads all, the last `extra`
    are its extra tokens.
    """

    hidden: Float[torch.Tensor, "B L D"]
    patches: Float[torch.Tensor, "B P D"]
    extra: int = 0

    def rows(self, part: slice) -> Seen:
        """Some neighboring rows."""
        return Seen(self.hidden[part], self.patches[part], self.extra)

    @property
    def extra_hidden(self) -> Float[torch.Tensor, "B K D"]:
        """Hidden states of the extra tokens."""
        return self.hidden[:, self.hidden.shape[1] - self.extra :]


def look(model: OpenVLA, batch: PolicyBatch, question: Question) -> Seen:
    """Run vision, projector and language model once over all rows of `batch`."""
    patches = see(model, batch)
    prefix = with_tokens(patches, question.prefix)
    counted = counted_tokens(batch, model.num_patches, prefix.shape[1])
    extra = 0 if question.extra is None else question.extra.shape[1]
    hidden = model.encode(
        question.input_ids, question.attention_mask, None,
        extra=question.extra, bidirectional=question.bidirectional, patches=prefix,
        patches_valid=counted, extra_valid=question.extra_valid,
        read=_positions(question, prefix.shape[1], extra),
    )  # fmt: skip
    return Seen(hidden, patches, extra)


def _positions(question: Question, before: int, extra: int) -> Int[torch.Tensor, "B R"] | None:
    """What is read, as positions of [BOS, `before` others, rest of the text, extra]."""
    if question.read is None:
        return None
    rows, text = question.input_ids.shape
    if isinstance(question.read, str):
        last = torch.arange(before + text, before + text + extra, device=question.input_ids.device)
        return last.expand(rows, -1)
    return torch.where(question.read > 0, question.read + before, question.read)


def see(model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B P D"]:
    """Projected patches, camera after camera; nothing is kept for a backward pass if nothing there trains."""
    pixels = batch.pixel_values
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.vision_trains):
        patches = model.project(pixels.reshape(-1, 6, *pixels.shape[2:]))
    return patches.reshape(len(pixels), -1, patches.shape[2])


def counted_tokens(batch: PolicyBatch, patches: int, length: int) -> Bool[torch.Tensor, "B N"] | None:
    """Which of the `length` tokens before the text count; None: all. Patches of missing cameras do not.

    Args:
        batch: whose cameras.
        patches: per camera.
        length: patches of all cameras, and other tokens behind them.
    """
    if batch.camera_mask is None or bool(batch.camera_mask.all()):
        return None
    seen = batch.camera_mask.repeat_interleave(patches, dim=1)
    return nn.functional.pad(seen, (0, length - seen.shape[1]), value=True)


def with_tokens(
    patches: Float[torch.Tensor, "B P D"], tokens: Float[torch.Tensor, "B N D"] | None
) -> Float[torch.Tensor, "B Q D"]:
    """Patches followed by other tokens."""
    return patches if tokens is None else torch.cat([patches, tokens.to(patches.dtype)], dim=1)


def join(questions: Sequence[Question], pad_token_id: int) -> Question:
    """Questions of neighboring groups of rows as one, texts and extra tokens padded to the longest.

    They come from heads of one configuration: all have the same number of prefix tokens.
    """
    if len(questions) == 1:
        return questions[0]
    text = max(question.input_ids.shape[1] for question in questions)
    prefixes = [question.prefix for question in questions if question.prefix is not None]
    assert len(prefixes) in (0, len(questions)), "heads of one configuration ask alike"
    extra, extra_valid = _join_extra(questions)
    return Question(
        torch.cat([_wider(question.input_ids, text, pad_token_id) for question in questions]),
        torch.cat([_wider(question.attention_mask, text, False) for question in questions]),
        torch.cat(prefixes) if prefixes else None,
        extra,
        extra_valid,
        questions[0].bidirectional,
        _join_read(questions),
    )


def _join_extra(questions: Sequence[Question]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """All extra tokens, and which of them count."""
    extras = [question.extra for question in questions if question.extra is not None]
    if not extras:
        return None, None
    assert len(extras) == len(questions), "heads of one configuration ask alike"
    longest = max(extra.shape[1] for extra in extras)
    tokens = torch.cat([nn.functional.pad(extra, (0, 0, 0, longest - extra.shape[1])) for extra in extras])
    valid = tokens.new_zeros(tokens.shape[:2], dtype=torch.bool)
    start = 0
    for question, extra in zip(questions, extras, strict=True):
        rows, length = extra.shape[:2]
        valid[start : start + rows, :length] = True if question.extra_valid is None else question.extra_valid
        start += rows
    return tokens, None if bool(valid.all()) else valid


def _join_read(questions: Sequence[Question]) -> torch.Tensor | Literal["extra"] | None:
    """Places of all; where a row reads fewer than the longest, it reads BOS for the rest."""
    reads = [question.read for question in questions]
    places = [read for read in reads if isinstance(read, torch.Tensor)]
    if not places:
        assert len(set(reads)) == 1, "heads of one configuration ask alike"
        return questions[0].read
    assert len(places) == len(reads), "heads of one configuration ask alike"
    most = max(read.shape[1] for read in places)
    return torch.cat([_wider(read, most, 0) for read in places])


def _wider(values: torch.Tensor, width: int, fill: int | bool) -> torch.Tensor:
    return nn.functional.pad(values, (0, width - values.shape[1]), value=fill)
