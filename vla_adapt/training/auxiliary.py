"""A helper loss: predict a recorded quantity (for instance the object's pose) from the policy's features.

It exists for training only and is thrown away at save. In simulation the target is privileged information, so
any comparison between runs must say which of them had it.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vla_adapt.policy.heads import HeadOutput


class AuxiliaryConfig(BaseModel):
    """`weight` 0 switches it off; `key` names a recorded extra of the episodes (RLDS `observation/<key>`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight: float = Field(default=0.0, ge=0)
    key: str = "object_pose"


class AuxiliaryLoss(nn.Module):
    """Linear readouts of `target` from mean-pooled projected patches and from the first action position.

    Args:
        width: feature width of the language model.
        mean, std: per-dimension statistics of the target over the training data, for standardizing it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.from_patches = nn.Linear(width, mean.numel())
        self.from_action = nn.Linear(width, mean.numel())
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(1e-6))

    def forward(self, output: HeadOutput, target: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """Absolute error per sample, in standard deviations, summed over the two readouts."""
        wanted = (target - self.mean) / self.std
        patches = self.from_patches(output.patches.mean(dim=1))
        action = self.from_action(output.action_hidden[:, 0])
        return (patches - wanted).abs().mean(-1) + (action - wanted).abs().mean(-1)


def target_statistics(values: Float[Tensor, "N F"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension."""
    return values.mean(0), values.std(0)
