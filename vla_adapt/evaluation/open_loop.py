"""Open loop: predicted against recorded actions on held-out episodes, beside always predicting the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import Window, window
from vla_adapt.types import SLOT_NAMES, slot_group_of

BATCH = 64
Place = tuple[EpisodeDataset, int, int]  # a step: dataset, episode, step


@dataclass
class OpenLoopResult:
    """Errors of one robot's policy.

    Attributes:
        error, baseline_error: mean absolute error over windows, horizon and slots, in half action ranges
            (1 is half of q01..q99); the baseline always predicts the mean training action.
        slots: per slot, the same in SI units: `{slot, unit, error, baseline_error}`.
    """

    robot: str
    windows: int
    error: float
    baseline_error: float
    slots: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def open_loop(policy: RobotPolicy, datasets: Sequence[EpisodeDataset], windows: int = 400) -> OpenLoopResult:
    """Judge `policy` on at most `windows` windows of `datasets`, evenly spaced over all their steps."""
    steps = evenly_spaced(datasets, windows)
    predicted, true, mask = _predict(policy, steps)
    average = policy.action_statistics.mean
    mean = policy.normalize(np.broadcast_to(average, true.shape))
    normalized_true, normalized_predicted = policy.normalize(true), policy.normalize(predicted)
    slots = []
    for slot in np.flatnonzero(mask.any(axis=(0, 1))):
        here = mask[..., slot]
        slots.append({
            "slot": SLOT_NAMES[slot],
            "unit": unit_of(int(slot)),
            "error": float(np.abs(predicted - true)[..., slot][here].mean()),
            "baseline_error": float(np.abs(average[slot] - true[..., slot])[here].mean()),
        })  # fmt: skip
    return OpenLoopResult(
        robot=policy.robot,
        windows=len(steps),
        error=float(np.abs(normalized_predicted - normalized_true)[mask].mean()),
        baseline_error=float(np.abs(mean - normalized_true)[mask].mean()),
        slots=slots,
    )


def evenly_spaced(datasets: Sequence[EpisodeDataset], count: int) -> list[Place]:
    """At most `count` different steps, evenly spaced over all episodes of all datasets, in their order."""
    episodes = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    lengths = np.concatenate([np.asarray(dataset.lengths) for dataset in datasets])
    ends = np.cumsum(lengths)
    picked = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(int))
    rows = np.searchsorted(ends, picked, side="right")
    starts = (ends - lengths)[rows]
    return [(*episodes[row], int(step)) for row, step in zip(rows, picked - starts, strict=True)]


def cut_windows(policy: RobotPolicy, steps: Sequence[Place]) -> list[Window]:
    """The windows at `steps` as `policy` sees them."""
    return [
        window(
            dataset[episode], step, policy.horizon, *policy.unifiers, (policy.camera,), dataset.name,
            optional_cameras=policy.observation.more_cameras,
        )
        for dataset, episode, step in steps
    ]  # fmt: skip


def _predict(policy: RobotPolicy, steps: Sequence[Place]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and recorded chunks [N, H, 32] in SI units, and where they count."""
    predicted, true, masks = [], [], []
    for start in range(0, len(steps), BATCH):
        batch = cut_windows(policy, steps[start : start + BATCH])
        predicted.append(policy.predict_windows(batch))
        true.append(np.stack([item["action"] for item in batch]))
        masks.append(np.stack([item["action_mask"] for item in batch]))
    return np.concatenate(predicted), np.concatenate(true), np.concatenate(masks)


def unit_of(slot: int) -> str:
    """SI unit of an action slot."""
    group = slot_group_of(slot)
    return group.units[slot - group.start]
