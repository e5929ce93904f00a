"""How much each robot's loss counts in the sum, where robots share parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

BALANCE = "balance"
# Peak learning rate of the learned scales, whatever the run's: Adam moves a log by about this per step.
SCALE_RATE = 1e-2

Balancing = Literal["none", "equal", "uncertainty"]


class LossBalance(nn.Module):
    """Losses of samples, weighted by their robot; a sample's weight does not depend on its batch.

    So the sum is the same however a batch is split over processes and passes.

    Args:
        robots: names, in the order of the weights.
    """

    def __init__(self, robots: Sequence[str]) -> None:
        super().__init__()
        self.robots = list(robots)

    def forward(self, losses: Float[Tensor, " B"], robots: Sequence[str]) -> Float[Tensor, " B"]:
        """`losses` of samples of these robots, weighted."""
        rows = torch.tensor([self.robots.index(robot) for robot in robots], device=losses.device)
        return self.weighted(losses, rows)

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The same, robots by number."""
        raise NotImplementedError


class EqualShares(LossBalance):
    """Each robot counts alike, however many of the samples are its own: weights 1 / (robots x share).

    Importance weights: the expected sum is the mean over robots of their mean losses.

    Args:
        robots: names.
        shares: robot -> what its part of the samples is proportional to.
    """

    weights: Tensor

    def __init__(self, robots: Sequence[str], shares: Mapping[str, float]) -> None:
        super().__init__(robots)
        share = torch.tensor([shares[robot] for robot in robots], dtype=torch.float64)
        weights = share.sum() / (len(share) * share)
        self.register_buffer("weights", weights.float(), persistent=False)

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Times the robot's weight."""
        return losses * self.weights[rows]


class LearnedScales(LossBalance):
    """Each robot's loss in units of its own size, by homoscedastic uncertainty (Kendall et al., 1705.07115).

    With a learned s per robot the sum is of exp(-s) loss + s, least at s = log(loss): a robot whose loss is
    ten times another's pulls shared parameters as hard as the other. s starts at 0, as if there was none.
    """

    def __init__(self, robots: Sequence[str]) -> None:
        super().__init__(robots)
        self.log_scales = nn.Parameter(torch.zeros(len(self.robots)))

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """In the robot's scale, with the price of that scale."""
        scales = self.log_scales[rows]
        return losses * torch.exp(-scales) + scales


def make_balance(
    kind: Balancing, robots: Sequence[str], shares: Mapping[str, float] | None = None
) -> LossBalance | None:
    """What `kind` asks for; None: every sample counts alike.

    Raises:
        ValueError: a single robot.
    """
    if kind == "none":
        return None
    if len(robots) < 2:
        raise ValueError(
            f"train.balance '{kind}' got one robot ({', '.join(robots)}), wanted two or more to balance; add "
            "one to the mixture or set train.balance=none"
        )
    if kind == "equal":
        return EqualShares(robots, shares or dict.fromkeys(robots, 1.0))
    return LearnedScales(robots)
