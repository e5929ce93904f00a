"""What every action head is: configuration, output, and the rules about masked slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from vla_adapt.policy.backbone import Question, Seen, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.condition import make_condition
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.types import NUM_SLOTS


class HeadConfig(BaseModel):
    """Which head, and how far it looks ahead.

    Attributes:
        kind: "tokens" (OpenVLA's 256 bins, autoregressive) or "parallel" (one pass, L1, as OpenVLA-OFT).
        horizon: steps per chunk.
        proprio: whether the robot's own state is an input.
        hidden: width of the head's MLPs; None takes the language model's width.
        placeholders: of "parallel": one per "step" of the chunk, or one per "number" (step and slot), as OFT.
        condition: what tells the backbone which robot it is: nothing, one learned embodiment token, or a
            soft prompt of `condition_tokens` learned vectors (`policy.condition`).
        condition_tokens: length of the soft prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["tokens", "parallel"] = "parallel"
    horizon: int = Field(default=8, ge=1, le=256)
    proprio: bool = True
    hidden: int | None = Field(default=None, ge=1)
    placeholders: Literal["step", "number"] = "step"
    condition: Literal["none", "token", "soft_prompt"] = "none"
    condition_tokens: int = Field(default=8, ge=1, le=256)


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
        self.condition = make_condition(config.condition, config.condition_tokens, width)

    @property
    def horizon(self) -> int:
        """Steps per predicted chunk."""
        return self.config.horizon

    def forward(self, model: OpenVLA, batch: PolicyBatch) -> HeadOutput:
        """Loss of each sample of one robot against `batch.action`: ask, look, answer."""
        question = self.ask(model, batch)
        return self.answer(model, batch, question, look(model, batch, question))

    def ask(self, model: OpenVLA, batch: PolicyBatch) -> Question:
        """The sequence the backbone has to run for a training batch of one robot."""
        raise NotImplementedError

    def answer(self, model: OpenVLA, batch: PolicyBatch, question: Any, seen: Seen) -> HeadOutput:
        """Loss of each sample, from what the backbone made of `question` (its texts maybe padded further)."""
        raise NotImplementedError

    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Normalized action chunk of each sample, zero where `batch.slot_mask` is False."""
        raise NotImplementedError

    def prefix(self, batch: PolicyBatch) -> Float[torch.Tensor, "B N D"] | None:
        """The tokens that tell which robot it is, if it has any."""
        return None if self.condition is None else self.condition(len(batch))

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
