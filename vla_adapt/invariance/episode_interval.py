"""Interval of a balanced accuracy whose rows come in episodes and so are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from jaxtyping import Bool, Int64

Z_95 = 1.959964


def score_interval(rate: float, trials: float | int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a rate seen in `trials` trials, not necessarily a whole number."""
    scale = 1 + z * z / trials
    center = rate + z * z / (2 * trials)
    spread = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low, high = (center - spread) / scale, (center + spread) / scale
    return min(rate, max(0.0, low)), max(rate, min(1.0, high))


def episode_interval(
    correct: Bool[np.ndarray, " N"], robot_index: Int64[np.ndarray, " N"], episodes: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """Balanced accuracy (mean over robots of the share of rows told right) and its 95 % interval.

    Wilson's interval on the effective number of trials (Korn & Graubard, 1998; Franco et al., 2019): the
    number of independent rows that would give the variance found between episodes. It is at least the number
    of episodes and at most that of the rows, so rows of one episode that are all right or all wrong count
    once, and an accuracy of 100 % still has a lower bound.

    Args:
        correct: whether the row was told right.
        robot_index: robot of the row; every robot counts the same.
        episodes: episode of the row.
    """
    names, episode = np.unique(np.asarray(episodes), return_inverse=True)
    rates, variances = [], []
    for robot in np.unique(robot_index):
        mine = robot_index == robot
        rate, variance = _clustered(correct[mine], episode[mine])
        rates.append(rate)
        variances.append(variance)
    accuracy = float(np.mean(rates))
    variance = float(np.sum(variances)) / len(rates) ** 2
    trials = accuracy * (1 - accuracy) / variance if variance > 0 else 0.0
    return accuracy, score_interval(accuracy, float(np.clip(trials, len(names), len(correct))))


def _clustered(correct: np.ndarray, episode: np.ndarray) -> tuple[float, float]:
    """Share of rows right, and its variance from the spread between episodes (ratio estimate)."""
    _, place = np.unique(episode, return_inverse=True)
    rows = np.bincount(place)
    right = np.bincount(place, weights=correct)
    rate, count = right.sum() / rows.sum(), len(rows)
    if count < 2:
        return float(rate), 0.0
    spread = np.square(right - rate * rows).sum() * count / (count - 1)
    return float(rate), float(spread / rows.sum() ** 2)
