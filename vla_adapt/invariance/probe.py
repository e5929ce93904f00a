"""The probe: how well fresh classifiers tell the robot from frozen features, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from vla_adapt.invariance.episode_folds import episode_folds
from vla_adapt.invariance.episode_interval import episode_interval
from vla_adapt.invariance.probe_fit import ProbeKind, fit_and_tell


class ProbeConfig(BaseModel):
    """How to probe.

    Attributes:
        folds: of the cross-validation; every robot needs as many episodes.
        hidden: width of the MLP's hidden layer.
        seed: of the folds and of the MLP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folds: int = Field(default=5, ge=2)
    hidden: int = Field(default=64, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class ProbeScore:
    """One classifier's balanced accuracy 0..1 with its 95 % interval, and whom it took for whom.

    `confusion[i][j]` is the share of robot i's rows told as robot j.
    """

    accuracy: float
    low: float
    high: float
    confusion: list[list[float]]

    @property
    def text(self) -> str:
        """`93.1 % [90.2, 95.2]`."""
        return f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class ProbeResult:
    """What the probe found in one set of features. `chance` is 1 / number of robots."""

    robots: tuple[str, ...]
    rows: int
    episodes: int
    chance: float
    linear: ProbeScore
    mlp: ProbeScore

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"robots": list(self.robots)}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> ProbeResult:
        """Undo `to_dict`."""
        scores = {kind: ProbeScore(**content[kind]) for kind in ("linear", "mlp")}
        return ProbeResult(**{**content, **scores, "robots": tuple(content["robots"])})


def probe(
    features: Float[np.ndarray, "N F"],
    robots: Sequence[str],
    episodes: Sequence[str],
    config: ProbeConfig | None = None,
) -> ProbeResult:
    """Train a linear and an MLP classifier on frozen features to tell the robot, and judge them.

    Cross-validation is by episode: steps of one episode look alike, and a classifier that had seen some of
    them would know the others by heart. The accuracy is balanced (every robot counts the same), so chance is
    1 / robots. The interval is Wilson's on the effective number of trials given the spread between episodes
    (see `episode_interval`); it does not know what another draw of the training folds would change. The same
    input gives the same result.

    Args:
        features: N rows.
        robots: robot of each row.
        episodes: episode of each row, with names that are unique over all robots.
        config: how to probe.

    Raises:
        ValueError: fewer than two robots, a robot with fewer episodes than folds, features with NaN.
    """
    config = config or ProbeConfig()
    names = tuple(sorted(set(robots)))
    if len(names) < 2:
        raise ValueError(f"the probe got rows of {len(names)} robot(s), wanted two or more to tell apart")
    if not np.isfinite(features).all():
        raise ValueError("the probe got features with NaN or infinity; look at what made them")
    index = np.array([names.index(robot) for robot in robots], np.int64)
    folds = episode_folds(index, episodes, config.folds, np.random.default_rng(config.seed))
    return ProbeResult(
        robots=names,
        rows=len(features),
        episodes=len(set(episodes)),
        chance=1 / len(names),
        linear=_score("linear", features, index, episodes, folds, config),
        mlp=_score("mlp", features, index, episodes, folds, config),
    )


def _score(
    kind: ProbeKind,
    features: np.ndarray,
    index: np.ndarray,
    episodes: Sequence[str],
    folds: np.ndarray,
    config: ProbeConfig,
) -> ProbeScore:
    rows, labels = torch.as_tensor(features, dtype=torch.float32), torch.from_numpy(index)
    count = int(index.max()) + 1
    told = torch.empty_like(labels)
    for fold in range(config.folds):
        test = torch.from_numpy(folds == fold)
        told[test] = fit_and_tell(
            kind, rows[~test], labels[~test], rows[test], count, config.hidden, config.seed + fold
        )
    accuracy, (low, high) = episode_interval(told.numpy() == index, index, episodes)
    confusion = np.zeros((count, count))
    np.add.at(confusion, (index, told.numpy()), 1.0)
    confusion /= confusion.sum(axis=1, keepdims=True)
    return ProbeScore(accuracy, low, high, confusion.round(4).tolist())
