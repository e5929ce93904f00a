"""The numbers a run logged as series over its steps: training per robot, validation, throughput."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

METRICS, THROUGHPUT, VALIDATION = "metrics.jsonl", "throughput.jsonl", "validation/"

Series = tuple[list[int], list[float]]  # steps, values


@dataclass(frozen=True)
class RunMetrics:
    """Rows of `metrics.jsonl` and of `throughput.jsonl` (none from versions before it)."""

    rows: list[dict[str, Any]]
    timing: list[dict[str, Any]]

    @staticmethod
    def load(run: Path) -> RunMetrics:
        """Of a run's folder, which may still be at work.

        Raises:
            ValueError: it holds no run.
        """
        if not (run / METRICS).is_file():
            raise ValueError(f"{run} holds no run: no {METRICS}; train with scripts/finetune.py first")
        timing = run / THROUGHPUT
        return RunMetrics(_rows(run / METRICS), _rows(timing) if timing.is_file() else [])

    @property
    def robots(self) -> list[str]:
        """Those that were trained, in the order in which they were logged."""
        return list(dict.fromkeys(row["robot"] for row in self.rows if "robot" in row and "loss" in row))

    def training(self, key: str) -> dict[str, Series]:
        """Robot -> a number of its training; robots without it are left out."""
        return _by_name(
            (row["robot"], row["step"], row[key]) for row in self.rows if "robot" in row and key in row
        )

    def validation(self) -> dict[str, dict[str, Series]]:
        """Metric -> robot -> series, of all keys that begin with `validation/`.

        What follows is the metric in rows of one robot; in others `<robot>/<metric>`, or the metric alone,
        which then is of all robots.
        """
        found: dict[str, list[tuple[str, int, float]]] = {}
        for row in self.rows:
            for key, value in row.items():
                if not key.startswith(VALIDATION) or not isinstance(value, int | float):
                    continue
                robot, metric = _robot_and_metric(key.removeprefix(VALIDATION), row.get("robot"))
                if metric == "samples":  # how many it is of, no curve
                    continue
                found.setdefault(metric, []).append((robot, row["step"], value))
        return {metric: _by_name(points) for metric, points in found.items()}

    def learning_rate(self) -> Series:
        """The same for all robots."""
        rates = {row["step"]: row["learning_rate"] for row in self.rows if "learning_rate" in row}
        return list(rates), list(rates.values())

    def throughput(self, key: str = "samples_per_s") -> Series:
        """Between logged steps, saves and validation included."""
        rows = [row for row in self.timing if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    @property
    def usual_throughput(self) -> float | None:
        """Median of the samples per second."""
        values = self.throughput()[1]
        return median(values) if values else None


def _robot_and_metric(key: str, robot: str | None) -> tuple[str, str]:
    if robot is not None:
        return robot, key.removeprefix(f"{robot}/")
    head, _, rest = key.partition("/")
    return (head, rest) if rest else ("all", head)


def _by_name(points: Any) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for name, step, value in points:
        steps, values = found.setdefault(name, ([], []))
        steps.append(step)
        values.append(float(value))
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines; the last one of a run at work may be cut off."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
