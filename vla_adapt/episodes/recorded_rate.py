"""At which rate the data of one robot was recorded, and whether all of it was at the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset

# Rates that differ by less than this share count as the same.
RATE_TOLERANCE = 0.15


def recorded_rate_hz(dataset: EpisodeDataset) -> float:
    """The rate the entry declares, else the files (LeRobot's fps), else the robot; an n-th if strided."""
    if isinstance(dataset, EpisodeSubset):
        return recorded_rate_hz(dataset.dataset)
    if isinstance(dataset, StridedDataset):
        return recorded_rate_hz(dataset.dataset) / dataset.stride
    declared = dataset.rate_hz if isinstance(dataset, MappedDataset) else None
    return declared or dataset.embodiment.rate_hz


def rates_differ(one_hz: float, other_hz: float) -> bool:
    """Whether motion recorded at one rate and replayed at the other is clearly another motion."""
    return abs(math.log(one_hz / other_hz)) > math.log(1 + RATE_TOLERANCE)


def pooled_rate_hz(datasets: Sequence[EpisodeDataset]) -> float | None:
    """The rate of the dataset with the most steps, or None where another's differs from it."""
    most = recorded_rate_hz(max(datasets, key=lambda dataset: int(dataset.lengths.sum())))
    return None if any(rates_differ(recorded_rate_hz(dataset), most) for dataset in datasets) else most


def rate_notes(datasets: Sequence[EpisodeDataset]) -> list[str]:
    """What to tell of the rates of one robot's datasets before it is trained; mostly nothing."""
    robot, pooled = datasets[0].embodiment, pooled_rate_hz(datasets)
    if pooled is None:
        told = ", ".join(f"{dataset.name} {recorded_rate_hz(dataset):g} Hz" for dataset in datasets)
        return [
            f"{robot.name}: its datasets were recorded at different rates ({told}), so one step is not the "
            "same motion in all of them and its bundle names no rate; make them robots of their own "
            "(`robot` in an entry) or read every n-th step (`stride`)"
        ]
    if rates_differ(pooled, robot.rate_hz):
        return [
            f"{robot.name}: its data was recorded at {pooled:g} Hz, the robot declares {robot.rate_hz:g} Hz; "
            f"the bundle says {pooled:g} Hz"
        ]
    return []
