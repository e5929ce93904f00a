"""What every action head is: configuration, output, and the rules about masked slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from vla_adapt.policy.backbone import Question, Seen, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.condition import make_condition
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.types import NUM_SLOTS

# Knobs of `HeadConfig` that only some kinds of head have.
_KNOBS = {
    "placeholders": ("parallel",),
    "grid": ("readout", "flow"),
    "flow_layers": ("flow",),
    "flow_steps": ("flow",),
    "noise_seed": ("flow",),
    "dropout": ("parallel", "readout", "flow"),
    "label_smoothing": ("tokens",),
}
# Knobs that change how a head trains and nothing of what a trained one answers.
_TRAINING = ("dropout", "label_smoothing")


class HeadConfig(BaseModel):
    """Which head, and how far it looks ahead. A knob of another kind than `kind` is refused.

    Attributes:
        kind: "tokens" (OpenVLA's 256 bins, autoregressive), "parallel" (one pass, L1, as OpenVLA-OFT), or,
            from a summary of what the backbone saw, "readout" (pooled by attention, L1) or "flow" (flow
            matching).
        horizon: steps per chunk.
        proprio: whether the robot's own state is an input.
        hidden: width of the head; None takes the language model's ("readout": half of it; both "readout" and
            "flow": at most 512).
        placeholders: of "parallel": one per "step" of the chunk, or one per "number" (step and slot), as OFT.
        grid: of "readout" and "flow": cells per side that each camera's patches are averaged on.
        flow_layers: of "flow": transformer blocks of the action expert.
        flow_steps: of "flow": Euler steps from noise to a chunk.
        noise_seed: of "flow": of the noise that predictions start from.
        condition: what tells the backbone which robot it is: nothing, one learned embodiment token, or a
            soft prompt of `condition_tokens` learned vectors (`policy.condition`).
        condition_tokens: length of the soft prompt.
        dropout: of "parallel", "readout" and "flow": share of the inner numbers of the head's MLPs (after the
            activation) that training zeroes (Srivastava et al., 2014).
        label_smoothing: of "tokens": share of each action token's label that training spreads evenly over all
            256 bins (Szegedy et al., 1512.00567); EOS and the words of the vocabulary get none of it. In
            eval mode the loss is the plain cross-entropy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["tokens", "parallel", "readout", "flow"] = "parallel"
    horizon: int = Field(default=8, ge=1, le=256)
    proprio: bool = True
    hidden: int | None = Field(default=None, ge=1)
    placeholders: Literal["step", "number"] = "step"
    grid: int = Field(default=4, ge=1, le=16)
    flow_layers: int = Field(default=3, ge=1, le=24)
    flow_steps: int = Field(default=10, ge=1, le=1000)
    noise_seed: int = Field(default=0, ge=0)
    condition: Literal["none", "token", "soft_prompt"] = "none"
    condition_tokens: int = Field(default=8, ge=1, le=256)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @property
    def served(self) -> HeadConfig:
        """Without the knobs that change training only: heads that answer alike have the same."""
        return self.model_copy(update={knob: type(self).model_fields[knob].default for knob in _TRAINING})

    @model_validator(mode="after")
    def _refuse_knobs_without_effect(self) -> HeadConfig:
        for knob, kinds in _KNOBS.items():
            if self.kind not in kinds and getattr(self, knob) != type(self).model_fields[knob].default:
                raise ValueError(
                    f"{knob} is a knob of the {' and '.join(kinds)} head and has no effect on '{self.kind}'; "
                    "leave it out"
                )
        if self.kind == "tokens" and not self.proprio and self.hidden is not None:
            raise ValueError(
                "a tokens head without proprio has no MLP, so hidden has no effect; leave it out"
            )
        if self.condition != "soft_prompt" and self.condition_tokens != 8:
            raise ValueError(
                f"condition_tokens is the length of a soft_prompt and has no effect on '{self.condition}'; "
                "leave it out"
            )
        return self


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
    cacheable: ClassVar[bool] = False  # reads only what a frozen backbone gives once and for all

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


def masked_mean(
    errors: Float[torch.Tensor, "B H 32"], mask: Bool[torch.Tensor, "B H 32"]
) -> Float[torch.Tensor, " B"]:
    """Mean over each sample's unmasked numbers; 0 for a sample that has none."""
    return errors.masked_fill(~mask, 0.0).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)


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
