"""The adversary of DANN: a small classifier that tries to tell the robot (Ganin et al., 2016, 1505.07818)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

CODES, CODE_WIDTH = 4096, 64
SLOPE = 0.2  # of the leaky ReLUs, as in DCGAN (Radford et al., 1511.06434): no unit of an adversary dies


class RobotClassifier(nn.Module):
    """MLP from features, and where it is conditional the instruction, to one logit per robot.

    An adversary that is told the instruction gains nothing from what features say about it: the encoder need
    not forget the task where robots do different tasks, as CDAN (Long et al., 1705.10667) wants. The
    instruction's vector is concatenated as in conditional GANs (Mirza & Osindero, 1411.1784); CDAN's outer
    product would have F x C inputs, and the hidden layer mixes both anyway.

    Args:
        width: F, of the features.
        robots: R, how many there are to tell apart.
        hidden: width of its two hidden layers.
        conditional: whether the instruction is an input.
        condition_width: C, of given instruction vectors; None: instructions are numbers that mean the same in
            every batch, each of which gets a fixed random vector.
        seed: of the initial weights; torch's global generator is not touched.
    """

    codes: Tensor

    def __init__(
        self,
        width: int,
        robots: int,
        hidden: int,
        conditional: bool = False,
        condition_width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.condition_width = condition_width
        self.conditional = conditional
        more = (condition_width or CODE_WIDTH) if conditional else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(width + more, hidden), nn.LeakyReLU(SLOPE),
                nn.Linear(hidden, hidden), nn.LeakyReLU(SLOPE),
                nn.Linear(hidden, robots),
            )  # fmt: skip
            if conditional and condition_width is None:
                self.register_buffer("codes", torch.randn(CODES, CODE_WIDTH), persistent=False)

    def forward(
        self, features: Float[Tensor, "B F"], condition: Num[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B R"]:
        """Logits. `condition` is [B] whole numbers, or [B, C]; no gradient flows into it.

        Raises:
            ValueError: no condition, or one of another kind or width than asked for.
        """
        if self.conditional:
            features = torch.cat([features, self._told(condition)], dim=1)
        return self.layers(features)

    def _told(self, condition: Tensor | None) -> Float[Tensor, "B C"]:
        wanted = "[B] whole numbers" if self.condition_width is None else f"[B, {self.condition_width}]"
        if condition is None:
            raise ValueError(f"conditional invariance got no condition; give {wanted} of the instructions")
        if self.condition_width is None and condition.ndim == 1 and not condition.is_floating_point():
            return self.codes[condition.long() % CODES]
        if condition.ndim != 2 or condition.shape[1] != self.condition_width:
            raise ValueError(f"condition is {list(condition.shape)} {condition.dtype}, wanted {wanted}")
        return condition.detach().float()


def gradient_penalty(
    classifier: RobotClassifier,
    features: Float[Tensor, "B F"],
    robot_index: Int[Tensor, " B"],
    condition: Num[Tensor, "B ..."] | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows of the squared gradient of a row's cross-entropy by its features.

    It reaches the classifier only. The R1 penalty of Mescheder et al. (1801.04406), who show that without it
    adversarial training need not converge; DomainBed's DANN (Gulrajani & Lopez-Paz, 2007.01434) has the same.
    """
    rows = features.detach().requires_grad_()
    total = nn.functional.cross_entropy(classifier(rows, condition), robot_index.long(), reduction="sum")
    (gradient,) = torch.autograd.grad(total, rows, create_graph=True)
    return gradient.square().sum(dim=1).mean()


def balanced_cross_entropy(logits: Float[Tensor, "B R"], robot_index: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross-entropy averaged over each robot's rows, then over the robots present."""
    losses = nn.functional.cross_entropy(logits, robot_index.long(), reduction="none")
    return balanced_mean(losses, robot_index)


def balanced_accuracy(logits: Float[Tensor, "B R"], robot_index: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Share of rows told right, averaged over each robot's rows, then over the robots present."""
    return balanced_mean((logits.argmax(dim=1) == robot_index).float(), robot_index)


def balanced_mean(values: Float[Tensor, " B"], robot_index: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean over the robots present of the mean over each robot's rows."""
    _, place, counts = torch.unique(robot_index, return_inverse=True, return_counts=True)
    return (values / counts[place]).sum() / len(counts)
