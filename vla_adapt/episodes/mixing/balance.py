"""From the weights of a mixture's datasets to the shares of the samples that they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Balance = Literal["none", "dataset", "robot", "size"]


def balanced_weights(
    weights: Sequence[float], steps: Sequence[int], robots: Sequence[str], balance: Balance
) -> list[float]:
    """What the share of each dataset is proportional to.

    Args:
        weights: one positive number per dataset.
        steps: how many steps there are to draw from in each.
        robots: name of each dataset's embodiment.
        balance: what decides.
            "none": the weight alone.
            "dataset": nothing; all datasets get the same share.
            "robot": all robots get the same share, divided among a robot's datasets by weight x steps.
            "size": weight x steps, as OpenVLA's and Octo's loaders do.
    """
    if balance == "dataset":
        return [1.0] * len(weights)
    asked = np.asarray(weights, np.float64)
    with np.errstate(over="ignore"):
        sized = asked * np.asarray(steps, np.float64)
        if not np.isfinite(sized.sum()):  # sums of what is returned must not overflow either
            asked = asked / asked.max()
            sized = asked * np.asarray(steps, np.float64)
    if balance == "none":
        return asked.tolist()
    if balance == "robot":
        names = np.asarray(robots)
        sized /= np.array([sized[names == name].sum() for name in names])
    return sized.tolist()
