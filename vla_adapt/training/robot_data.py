"""What each robot of a run was trained on and with, for its card and the run's summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vla_adapt.adaptation.adapter_name import SHARED
from vla_adapt.adaptation.card import DataLine
from vla_adapt.adaptation.licenses import UNKNOWN
from vla_adapt.episodes.provenance import provenance, stand_ins
from vla_adapt.episodes.recorded_rate import recorded_rate_hz
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.training.setting import Robot, Setting


def data_lines(robot: Robot) -> list[DataLine]:
    """One per dataset, in the order of the mixture."""
    held_out = {dataset.name: len(dataset) for dataset in robot.held_out}
    return [_line(dataset, held_out.get(dataset.name, 0)) for dataset in robot.train]


def trained_with(setting: Setting) -> dict[str, dict[str, Any]]:
    """Robot -> number of parameters that trained for it (shared ones count for each), and its datasets."""
    counts = {name: sum(p.numel() for p in group) for name, group in setting.learner.groups().items()}
    return {
        name: {
            "parameters": counts.get(name, 0) + counts.get(SHARED, 0),
            "data": [asdict(line) for line in data_lines(robot)],
        }
        for name, robot in setting.robots.items()
    }


def _line(dataset: EpisodeDataset, held_out: int) -> DataLine:
    license, source = provenance(dataset)
    steps = int(dataset.lengths.sum())
    lines = dataset.name, len(dataset), steps, held_out, license or UNKNOWN, source
    return DataLine(*lines, recorded_rate_hz(dataset), stand_ins(dataset))
