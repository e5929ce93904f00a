"""The two classifiers of the probe, fitted from scratch: logistic regression and a small MLP."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ProbeKind = Literal["linear", "mlp"]

_LBFGS_STEPS = 60
_MLP_STEPS, _MLP_RATE, _MLP_DECAY = 150, 1e-2, 1e-2


def fit_and_tell(
    kind: ProbeKind,
    train: Float[Tensor, "N F"],
    robot_index: Int[Tensor, " N"],
    test: Float[Tensor, "M F"],
    robots: int,
    hidden: int,
    seed: int,
) -> Int[Tensor, " M"]:
    """Fit a classifier on `train` and tell the robot of each row of `test`.

    Features are put into standard units by the training rows alone. Every robot counts the same, however many
    rows it has.

    Args:
        kind: "linear" is logistic regression with the penalty ||W||^2 / (2 N), fitted by L-BFGS; "mlp" has
            one hidden layer and is fitted by AdamW on all rows at once.
        train: features to learn from.
        robot_index: of the training rows.
        test: features to judge on.
        robots: R, how many there are.
        hidden: width of the MLP's hidden layer.
        seed: of the MLP's initial weights; torch's global generator is not touched.
    """
    mean, deviation = train.mean(dim=0), train.std(dim=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    train, test = (train - mean) / deviation, (test - mean) / deviation
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        if kind == "linear":
            model = _linear(train, robot_index, robots)
        else:
            model = _mlp(train, robot_index, robots, hidden)
    with torch.no_grad():
        return model(test).argmax(dim=1)


def _linear(train: Tensor, robot_index: Tensor, robots: int) -> nn.Module:
    model = nn.Linear(train.shape[1], robots)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    weights = _row_weights(robot_index)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> float:
        optimizer.zero_grad()
        penalty = model.weight.square().sum() / (2 * len(train))
        value = weights @ cross_entropy(model(train), robot_index, reduction="none") + penalty
        value.backward()
        return value.item()

    optimizer.step(loss)
    return model


def _mlp(train: Tensor, robot_index: Tensor, robots: int, hidden: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(train.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, robots))
    weights = _row_weights(robot_index)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_MLP_RATE, weight_decay=_MLP_DECAY)
    for _ in range(_MLP_STEPS):
        optimizer.zero_grad()
        (weights @ cross_entropy(model(train), robot_index, reduction="none")).backward()
        optimizer.step()
    return model


def _row_weights(robot_index: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Weights that sum to 1 over all rows and to the same over each robot's."""
    _, place, counts = torch.unique(robot_index, return_inverse=True, return_counts=True)
    return 1.0 / (counts[place] * len(counts))
