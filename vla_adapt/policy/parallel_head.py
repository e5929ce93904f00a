"""Parallel head: all steps of a chunk in one pass, L1 regression (OpenVLA-OFT, Kim et al., 2502.19645).

There is one placeholder per time step (measured to learn as well at a seventh of the tokens) or, with
`placeholders: number` as in OFT, one per step and slot that the robot has.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import nn

from vla_adapt.policy.action_head import ActionHead, HeadConfig, HeadOutput, ProprioEncoder, masked_mean
from vla_adapt.policy.backbone import Question, Seen, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.types import NUM_SLOTS

_PLACEHOLDER_STD = 0.02
_OUTPUT_STD = 0.01  # first predictions stay near zero, the middle of the normalized range


class ParallelHead(ActionHead):
    """Learned placeholder tokens after the prompt, full attention, and an MLP from each to 32 slots."""

    name: ClassVar[str] = "parallel"

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        hidden = config.hidden or width
        self.placeholders = nn.Parameter(torch.randn(config.horizon, width) * _PLACEHOLDER_STD)
        self.slots = None
        if config.placeholders == "number":
            self.slots = nn.Parameter(torch.randn(NUM_SLOTS, width) * _PLACEHOLDER_STD)
        self.proprio = ProprioEncoder(width, hidden) if config.proprio else None
        self.fc1 = nn.Linear(width, hidden)
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(hidden, NUM_SLOTS)
        nn.init.normal_(self.fc2.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.fc2.bias)

    def ask(self, model: OpenVLA, batch: PolicyBatch) -> Question:
        """Proprio and placeholders after the text, all attending to all."""
        extra = self._queries(batch)
        if self.proprio is not None:
            extra = torch.cat([self.proprio(batch.proprio, batch.proprio_mask), extra], dim=1)
        return Question(
            batch.input_ids, batch.attention_mask, self.prefix(batch), extra, bidirectional=True, read="extra"
        )

    def answer(self, model: OpenVLA, batch: PolicyBatch, question: Question, seen: Seen) -> HeadOutput:
        """Mean absolute error over each sample's unmasked numbers."""
        target, mask = self.targets(batch)
        values, hidden = self._read(batch, question, seen)
        prediction = values.masked_fill(~mask, 0.0)
        return HeadOutput(masked_mean((prediction - target).abs(), mask), prediction, seen.patches, hidden)

    @torch.no_grad()
    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Chunk of each sample."""
        question = self.ask(model, batch)
        values, _ = self._read(batch, question, look(model, batch, question))
        return values.masked_fill(~batch.slot_mask[:, None], 0.0)

    def _queries(self, batch: PolicyBatch) -> Float[torch.Tensor, "B K D"]:
        """The placeholders, step after step."""
        if self.slots is None:
            return self.placeholders.expand(len(batch), -1, -1)
        slots = self.slots[_own_slots(batch)]
        return (self.placeholders[:, None] + slots).flatten(0, 1).expand(len(batch), -1, -1)

    def _read(
        self, batch: PolicyBatch, question: Question, seen: Seen
    ) -> tuple[Float[torch.Tensor, "B H 32"], Float[torch.Tensor, "B K D"]]:
        """Predicted numbers, and the hidden states they were read from."""
        assert question.extra is not None
        start = 0 if self.proprio is None else 1
        hidden = seen.extra_hidden[:, start : question.extra.shape[1]]
        states = self.drop(nn.functional.gelu(self.fc1(hidden.to(self.fc1.weight.dtype))))
        if self.slots is None:
            return self.fc2(states).float(), hidden
        own = _own_slots(batch)
        states = states.unflatten(1, (self.horizon, len(own)))
        numbers = torch.einsum("bhdf,df->bhd", states, self.fc2.weight[own]) + self.fc2.bias[own]
        values = numbers.new_zeros(len(batch), self.horizon, NUM_SLOTS, dtype=torch.float32)
        return values.index_copy(2, own, numbers.float()), hidden


def _own_slots(batch: PolicyBatch) -> Int[torch.Tensor, " N"]:
    """Slots of the batch's one robot.

    Raises:
        ValueError: rows of robots with different slots.
    """
    if not bool((batch.slot_mask == batch.slot_mask[:1]).all()):
        raise ValueError("placeholders per number: one head answers for one robot, got rows of several")
    return batch.slot_mask[0].nonzero()[:, 0]
