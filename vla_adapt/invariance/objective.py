"""The invariance loss of a run: what a recipe asks for, on the features of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vla_adapt.invariance.coral import coral
from vla_adapt.invariance.dann import (
    RobotClassifier,
    balanced_accuracy,
    balanced_cross_entropy,
    gradient_penalty,
)
from vla_adapt.invariance.instruction_groups import within_groups
from vla_adapt.invariance.mmd import mmd2
from vla_adapt.invariance.reversal import dann_ramp, reverse_gradient
from vla_adapt.invariance.tap import TapName

_ALIGNMENTS = {"mmd": mmd2, "coral": coral}


class InvarianceConfig(BaseModel):
    """Which loss makes features hide the robot, where and how strongly. Off by default.

    Attributes:
        method: "dann" (an adversary behind a gradient reversal), "mmd" or "coral".
        weight: against the action loss when the schedule is at 1; 0 switches everything off.
        tap: "patches" (projected image patches, mean) or "hidden" (last hidden states at the action
            positions, mean).
        schedule: of the weight over training: "ramp" is DANN's, "warmup" linear, "constant".
        warmup: share of the training over which "warmup" rises from 0 to 1.
        conditional: align robots within the same instruction only.
        classifier_width: of the two hidden layers of DANN's adversary.
        classifier_rate: its learning rate, in multiples of the run's.
        classifier_momentum: beta1 of its AdamW. 0 as in WGAN-GP (Gulrajani et al., 1704.00028): where two
            learners play against each other momentum makes them circle (Gidel et al., 1807.04740).
        gradient_penalty: on the adversary (see `dann.gradient_penalty`); 0 is DANN as published, which chases
            its adversary in circles where features have room to spare. What is left of the circles an average
            of the weights takes away (`train.ema`; Yazici et al., 1806.04498).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["none", "dann", "mmd", "coral"] = "none"
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    tap: TapName = "patches"
    schedule: Literal["constant", "ramp", "warmup"] = "ramp"
    warmup: float = Field(default=0.1, gt=0, le=1)
    conditional: bool = False
    classifier_width: int = Field(default=128, gt=0)
    classifier_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    classifier_momentum: float = Field(default=0.0, ge=0, lt=1)
    gradient_penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.method != "none" and self.weight > 0

    def strength(self, progress: float | int) -> float:
        """Weight times schedule at the share `progress` (0..1) of the training."""
        factor = {
            "constant": 1.0,
            "ramp": dann_ramp(progress),
            "warmup": min(1.0, progress / self.warmup),
        }[self.schedule]
        return self.weight * factor


class InvarianceObjective(nn.Module):
    """The loss of `config` over batches that mix `robots`; its parameters are never saved.

    Features are put into standard units first: per feature, by mean and deviation over the rows of the batch,
    held constant. So the weight means the same at every tap and base, and shrinking features gains nothing.

    With several processes each sees its own rows only: means, kernels and counts are those of the process,
    and DDP averages the gradients. A process needs some rows of at least two robots for mmd and coral.

    Args:
        config: of the recipe.
        width: F, of the features.
        robots: names; `robot_index` counts in their order.
        condition_width: of instruction vectors given as condition; None: instructions come as numbers
            (see `instruction_groups.instruction_ids`).
        seed: of the adversary's weights.

    Raises:
        ValueError: fewer than two robots, or one named twice.
    """

    def __init__(
        self,
        config: InvarianceConfig,
        width: int,
        robots: Sequence[str],
        condition_width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.robots = config, tuple(robots)
        if config.active and len(self.robots) < 2:
            raise ValueError(
                f"invariance '{config.method}' got {len(self.robots)} robot(s) "
                f"({', '.join(self.robots) or 'none'}), wanted two or more to make alike; add one to the "
                "mixture or set invariance.method: none"
            )
        if len(set(self.robots)) < len(self.robots):
            raise ValueError(f"invariance got a robot twice: {', '.join(self.robots)}; name each once")
        self.classifier = None
        if config.active and config.method == "dann":
            self.classifier = RobotClassifier(
                width, len(self.robots), config.classifier_width, config.conditional, condition_width, seed
            )

    def index(self, robots: Sequence[str], device: torch.device | str = "cpu") -> Int[Tensor, " B"]:
        """The number of each row's robot."""
        return torch.tensor([self.robots.index(robot) for robot in robots], device=device)

    def forward(
        self,
        features: Float[Tensor, "B F"],
        robot_index: Int[Tensor, " B"],
        progress: float | int,
        condition: Num[Tensor, "B ..."] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """What to add to the action loss, and numbers to log.

        For dann it is the adversary's cross-entropy and gradient penalty: the adversary learns at full speed,
        the features receive the gradient of the cross-entropy times minus `strength`. For mmd and coral it is
        `strength` times the statistic, 0 when too few rows of two robots are there. Computed in float32 also
        under autocast.

        Args:
            features: of one tap (see `tap.tapped`).
            robot_index: [B], into `robots`.
            progress: share of the training that is done, 0..1.
            condition: the instruction of each row, read when `conditional`: [B] whole numbers or [B, C].

        Returns:
            The loss, and detached scalars: `strength`, and `accuracy` (balanced, of the adversary in this
            batch) and `cross_entropy` for dann, else the statistic under the method's name.

        Raises:
            ValueError: conditional, but no condition.
        """
        if not self.config.active:
            return features.new_zeros((), dtype=torch.float32), {}
        if not self.config.conditional:
            condition = None
        elif condition is None:
            raise ValueError(
                "invariance.conditional is set, but no condition is given: pass the instructions"
            )
        strength = self.config.strength(progress)
        with torch.autocast(features.device.type, enabled=False):
            standard = _standard_units(features.float())
            loss, metrics = self._loss(standard, robot_index, strength, condition)
        return loss, metrics | {"strength": torch.tensor(strength)}

    def _loss(
        self,
        features: Float[Tensor, "B F"],
        robot_index: Int[Tensor, " B"],
        strength: float,
        condition: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.classifier is not None:
            logits = self.classifier(reverse_gradient(features, strength), condition)
            loss = balanced_cross_entropy(logits, robot_index)
            metrics = {
                "accuracy": balanced_accuracy(logits.detach(), robot_index),
                "cross_entropy": loss.detach(),
            }
            factor = self.config.gradient_penalty
            if factor and torch.is_grad_enabled():
                loss = loss + factor * gradient_penalty(self.classifier, features, robot_index, condition)
            return loss, metrics
        value = within_groups(_ALIGNMENTS[self.config.method], features, robot_index, condition)
        if value is None:
            return features.sum() * 0.0, {}
        return strength * value, {self.config.method: value.detach()}


def _standard_units(features: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
    """Features in their own deviations over the batch; those that do not vary become 0, without gradient.

    A feature that varies by less than a hundredth of the typical one is divided by that instead, so that no
    gradient is blown up.
    """
    centered = features - features.mean(dim=0)
    variance = centered.square().mean(dim=0)
    varies = variance.detach() > 1e-10 * features.detach().square().mean()
    floor = 1e-4 * variance.mean()
    scale = torch.where(varies, variance, 1.0).clamp_min(floor).rsqrt()
    return centered * scale * varies
