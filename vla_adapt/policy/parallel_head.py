"""Parallel head: all steps of a chunk in one pass, L1 regression (OpenVLA-OFT, Kim et al., 2502.19645).

Unlike OFT, which has one placeholder per action dimension, there is one per time step.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import nn

from vla_adapt.policy.action_head import ActionHead, HeadConfig, HeadOutput, ProprioEncoder
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
        self.proprio = ProprioEncoder(width, hidden) if config.proprio else None
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, NUM_SLOTS)
        nn.init.normal_(self.fc2.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.fc2.bias)

    def _run(
        self, model: OpenVLA, batch: PolicyBatch
    ) -> tuple[Float[torch.Tensor, "B H 32"], Float[torch.Tensor, "B P D"], Float[torch.Tensor, "B H D"]]:
        patches = model.project(batch.pixel_values)
        extra = self.placeholders.expand(len(batch), -1, -1)
        if self.proprio is not None:
            extra = torch.cat([self.proprio(batch.proprio, batch.proprio_mask), extra], dim=1)
        hidden = model.encode(
            batch.input_ids, batch.attention_mask, None, extra=extra, bidirectional=True, patches=patches
        )[:, -self.horizon :]
        values = self.fc2(nn.functional.gelu(self.fc1(hidden.to(self.fc1.weight.dtype))))
        return values.float(), patches, hidden

    def forward(self, model: OpenVLA, batch: PolicyBatch) -> HeadOutput:
        """Mean absolute error over each sample's unmasked numbers."""
        target, mask = self.targets(batch)
        values, patches, hidden = self._run(model, batch)
        prediction = values.masked_fill(~mask, 0.0)
        count = mask.sum(dim=(1, 2)).clamp(min=1)
        loss = (prediction - target).abs().sum(dim=(1, 2)) / count
        return HeadOutput(loss, prediction, patches, hidden)

    @torch.no_grad()
    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Chunk of each sample."""
        return self._run(model, batch)[0].masked_fill(~batch.slot_mask[:, None], 0.0)
