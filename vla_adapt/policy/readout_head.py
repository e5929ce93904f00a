"""Readout head: attention pooling over a summary of what the backbone saw, and L1 regression.

One learned query per time step pools the summary's tokens and proprio (multi-head attention pooling, Zhai et
al., 2106.04560; as the readouts of Octo, 2405.12213), then an MLP gives 32 slots.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import nn

from vla_adapt.policy.action_head import HeadConfig, HeadOutput, masked_mean
from vla_adapt.policy.attention import Attention
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.types import NUM_SLOTS

_QUERY_STD = 0.02
_OUTPUT_STD = 0.01  # first predictions stay near zero, the middle of the normalized range


class ReadoutHead(SummaryHead):
    """Queries, one attention, one MLP; about 17 context tokens, so that a step costs next to nothing."""

    name: ClassVar[str] = "readout"
    narrower: ClassVar[int] = 2

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        inner = self.inner_width
        self.steps = nn.Parameter(torch.randn(config.horizon, inner) * _QUERY_STD)
        self.attention = Attention(inner)
        self.norm = nn.LayerNorm(inner)
        self.fc1 = nn.Linear(inner, inner)
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(inner, NUM_SLOTS)
        nn.init.normal_(self.fc2.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.fc2.bias)

    def answer_summary(self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]) -> HeadOutput:
        """Mean absolute error over each sample's unmasked numbers."""
        target, mask = self.targets(batch)
        prediction = self.predict_summary(batch, summary).masked_fill(~mask, 0.0)
        return self.output(masked_mean((prediction - target).abs(), mask), prediction, summary)

    def predict_summary(
        self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]
    ) -> Float[torch.Tensor, "B H 32"]:
        """Predicted numbers, not clipped (as those of the parallel head)."""
        tokens, counted = self.reader(batch, summary)
        queries = self.steps.expand(len(batch), -1, -1)
        if self.reader.proprio is not None:
            queries = queries + tokens[:, -1:]
        pooled = queries + self.attention(queries, tokens, counted)
        return self.fc2(self.drop(nn.functional.gelu(self.fc1(self.norm(pooled))))).float()
