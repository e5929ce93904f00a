"""What every action head is: configuration, output, and the rules about masked slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.types import NUM_SLOTS


class HeadConfig(BaseModel):
    """Which head, and how far it looks ahead.

    Attributes:
        kind: "tokens" (OpenVLA's 256 bins, autoregressive) or "parallel" (one pass, L1, as OpenVLA-OFT).
        horizon: steps per chunk.
        proprio: whether the robot's own state is an input.
        hidden: width of the head's MLPs; None takes the language model's width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["tokens", "parallel"] = "parallel"
    horizon: int = Field(default=8, ge=1, le=256)
    proprio: bool = True
    hidden: int | None = Field(default=None, ge=1)


@dataclass
class HeadOutput:
    """What a head's forward pass gives; `prediction` carries no promise of gradients."""

    loss_per_sample: Float[torch.Tensor, " B"]
    prediction: Float[torch.Tensor, "B H 32"]
    patches: Float[torch.Tensor, "B P D"]
    action_hidden: Float[torch.Tensor, "B K D"]


class ActionHead(nn.Module):
    """Common part of the heads. Masked slots give exactly zero loss, gradient and prediction."""

    name: ClassVar[str]

    def __init__(self, config: HeadConfig, width: int):
        super().__init__()
        self.config = config
        self.width = width

    @property
    def horizon(self) -> int:
        """Steps per predicted chunk."""
        return self.config.horizon

    def forward(self, model: OpenVLA, batch: PolicyBatch) -> HeadOutput:
        """Loss of each sample against `batch.action`."""
        raise NotImplementedError

    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Normalized action chunk of each sample, zero where `batch.slot_mask` is False."""
        raise NotImplementedError

    def targets(
        self, batch: PolicyBatch
    ) -> tuple[Float[torch.Tensor, "B H 32"], Bool[torch.Tensor, "B H 32"]]:
        """Actions and mask of a training batch, with masked values set to zero.

        Raises:
            ValueError: when the batch has no actions, or another horizon than the head's.
        """
        if batch.action is None or batch.action_mask is None:
            raise ValueError("this batch holds no actions; build it from windows, or call predict")
        if batch.action.shape[1] != self.horizon:
            raise ValueError(
                f"batch has {batch.action.shape[1]} action steps, this head wants {self.horizon}"
            )
        mask = batch.action_mask & batch.slot_mask[:, None]
        return batch.action.masked_fill(~mask, 0.0), mask


class ProprioEncoder(nn.Module):
    """Two-layer MLP from 32 state values and their mask to one token."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(2 * NUM_SLOTS, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self, values: Float[torch.Tensor, "B 32"], mask: Bool[torch.Tensor, "B 32"]
    ) -> Float[torch.Tensor, "B 1 D"]:
        """One token per row; masked values are not read."""
        weight = self.fc1.weight
        inputs = torch.cat([values.masked_fill(~mask, 0.0), mask.to(values.dtype)], dim=1)
        return self.fc2(nn.functional.gelu(self.fc1(inputs.to(weight.dtype))))[:, None]
