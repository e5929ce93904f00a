"""OpenVLA's own head: each action number is one token, one after the other (Kim et al., 2406.09246).

Tokens follow the prompt step by step, within a step in slot order over the robot's slots, then comes EOS.
Rows of robots with different numbers of slots share a batch: a row's tokens start right after its own prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from vla_adapt.policy.action_head import ActionHead, HeadConfig, HeadOutput, ProprioEncoder
from vla_adapt.policy.backbone import Question, Seen, counted_tokens, see, with_tokens
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.decoding import greedy_decode
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.types import NUM_SLOTS


@dataclass
class _TokenPlan:
    """For the k-th action token of each row: which step and slot it stands for, and whether there is one."""

    index: Int[torch.Tensor, "B K"]  # step * 32 + slot
    present: Bool[torch.Tensor, "B K"]
    counts: Int[torch.Tensor, " B"]


def _plan(slot_mask: Bool[torch.Tensor, "B 32"], horizon: int) -> _TokenPlan:
    dims = slot_mask.sum(dim=1)
    order = torch.argsort((~slot_mask).to(torch.int8), dim=1, stable=True)
    position = torch.arange(horizon * int(dims.max()), device=slot_mask.device)
    divisor = dims.clamp(min=1)[:, None]
    step, rank = position // divisor, position % divisor
    present = position < (horizon * dims)[:, None]
    index = step * NUM_SLOTS + order.gather(1, rank)
    return _TokenPlan(index.masked_fill(~present, 0), present, horizon * dims)


@dataclass
class TokenQuestion(Question):
    """With the tokens' meaning, and the labels of the K places after the prompt (-1: no loss)."""

    plan: _TokenPlan = field(kw_only=True)
    labels: Int[torch.Tensor, "B K"] = field(kw_only=True)


class TokenHead(ActionHead):
    """Cross-entropy on action tokens and EOS; no weights of its own unless it reads proprio.

    With `proprio`, one extra token stands between the image and the text.
    """

    name: ClassVar[str] = "tokens"

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        self.proprio = ProprioEncoder(width, config.hidden or width) if config.proprio else None

    def prefix(self, batch: PolicyBatch) -> Float[torch.Tensor, "B N D"] | None:
        """Proprio, then the tokens that tell which robot it is."""
        condition = super().prefix(batch)
        if self.proprio is None:
            return condition
        proprio = self.proprio(batch.proprio, batch.proprio_mask)
        return proprio if condition is None else torch.cat([proprio, condition], dim=1)

    def ask(self, model: OpenVLA, batch: PolicyBatch) -> TokenQuestion:
        """The prompt with the right action tokens behind it, read causally."""
        target, mask = self.targets(batch)
        plan = _plan(batch.slot_mask, self.horizon)
        codec = model.action_tokenizer()
        tokens = torch.from_numpy(codec.encode(target.detach().float().cpu().numpy())).to(target.device)
        ids, attention, labels = self._sequences(model, batch, plan, tokens.flatten(1), mask.flatten(1))
        first = batch.attention_mask.sum(dim=1, keepdim=True) - 1  # predicts the first token
        places = first + torch.arange(labels.shape[1], device=labels.device)
        return TokenQuestion(ids, attention, self.prefix(batch), read=places, plan=plan, labels=labels)

    def answer(self, model: OpenVLA, batch: PolicyBatch, question: TokenQuestion, seen: Seen) -> HeadOutput:
        """Mean cross-entropy over each sample's unmasked action tokens and, after a complete chunk, EOS."""
        mask, plan, labels = self.targets(batch)[1], question.plan, question.labels
        codec = model.action_tokenizer()
        hidden = seen.hidden[:, : labels.shape[1]]
        wanted = labels >= 0
        logits = model.language_model.lm_head(hidden[wanted]).float()
        token_loss = nn.functional.cross_entropy(logits, labels[wanted], reduction="none")
        if self.training and self.config.label_smoothing:
            bins = slice(codec.first_id, codec.vocab_size)
            token_loss = token_loss + self._smoothing(logits, labels[wanted], bins)
        loss = token_loss.new_zeros(len(batch)).index_add(0, wanted.nonzero()[:, 0], token_loss)
        loss = loss / wanted.sum(dim=1).clamp(min=1)

        chosen = torch.zeros_like(labels)
        bins = logits.detach()[:, codec.first_id : codec.vocab_size]
        chosen[wanted] = codec.first_id + bins.argmax(dim=1)
        prediction = self._values(model, plan, chosen[:, :-1]).masked_fill(~mask, 0.0)
        return HeadOutput(loss, prediction, seen.patches, self._step_starts(hidden, plan))

    def _smoothing(
        self, logits: Float[torch.Tensor, "N V"], labels: Int[torch.Tensor, " N"], bins: slice
    ) -> Float[torch.Tensor, " N"]:
        """What label smoothing over the bins adds to the cross-entropy of action tokens: 0 for EOS.

        Of the label e / 256 goes to each bin and 1 - e stays. Both parts hold the same sum over the
        vocabulary, so that the difference is e times (the label's logit less the bins' mean logit).
        """
        own = logits.gather(1, labels[:, None])[:, 0]
        of_actions = (labels >= bins.start) & (labels < bins.stop)
        return self.config.label_smoothing * (own - logits[:, bins].mean(dim=1)) * of_actions

    def _sequences(
        self,
        model: OpenVLA,
        batch: PolicyBatch,
        plan: _TokenPlan,
        tokens: Int[torch.Tensor, "B N"],
        mask: Bool[torch.Tensor, "B N"],
    ) -> tuple[Int[torch.Tensor, "B T"], Bool[torch.Tensor, "B T"], Int[torch.Tensor, "B K"]]:
        """Prompt + action tokens of each row, its mask, and labels of the K places after the prompt."""
        rows, text = batch.input_ids.shape
        width = plan.index.shape[1]
        lengths = batch.attention_mask.sum(dim=1, keepdim=True)
        pad = model.config.pad_token_id
        actions = tokens.gather(1, plan.index)
        places = lengths + torch.arange(width, device=tokens.device)
        ids = batch.input_ids.new_full((rows, text + width), pad)
        ids[:, :text] = batch.input_ids.masked_fill(~batch.attention_mask, pad)
        ids.scatter_(1, places, actions.masked_fill(~plan.present, pad))
        attention = torch.zeros_like(ids, dtype=torch.bool)
        attention[:, :text] = batch.attention_mask
        attention.scatter_(1, places, plan.present)

        labelled = plan.present & mask.gather(1, plan.index)
        labels = actions.new_full((rows, width + 1), -1)
        labels[:, :-1] = actions.masked_fill(~labelled, -1)
        complete = (labelled == plan.present).all(dim=1) & (plan.counts > 0)
        eos = torch.where(complete, model.config.text["eos_token_id"], -1)
        labels.scatter_(1, plan.counts[:, None], eos[:, None].to(labels.dtype))
        return ids, attention, labels

    def _values(
        self, model: OpenVLA, plan: _TokenPlan, ids: Int[torch.Tensor, "B K"]
    ) -> Float[torch.Tensor, "B H 32"]:
        """Action tokens in plan order to normalized values in their slots."""
        numbers = torch.from_numpy(model.action_tokenizer().decode(ids.cpu().numpy())).float().to(ids.device)
        values = numbers.new_zeros(len(ids), self.horizon * NUM_SLOTS)
        values.scatter_add_(1, plan.index, numbers.masked_fill(~plan.present, 0.0))
        return values.view(len(ids), self.horizon, NUM_SLOTS)

    def _step_starts(
        self, hidden: Float[torch.Tensor, "B K D"], plan: _TokenPlan
    ) -> Float[torch.Tensor, "B H D"]:
        """Hidden states that predict the first token of each step."""
        dims = plan.counts // self.horizon
        starts = dims[:, None] * torch.arange(self.horizon, device=hidden.device)
        return hidden.gather(1, starts[..., None].expand(-1, -1, hidden.shape[-1]))

    @torch.no_grad()
    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Chunk of each sample, decoded greedily among action tokens only."""
        plan = _plan(batch.slot_mask, self.horizon)
        codec = model.action_tokenizer()
        allowed = slice(codec.first_id, codec.vocab_size)
        prefix = with_tokens(see(model, batch), self.prefix(batch))
        counted = counted_tokens(batch, model.num_patches, prefix.shape[1])
        steps = plan.index.shape[1]
        ids, _ = greedy_decode(model, batch.input_ids, batch.attention_mask, prefix, steps, allowed, counted)
        return self._values(model, plan, ids)
