"""Logged rows as series, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.evaluation.run_metrics import RunMetrics

ROWS: list[dict[str, Any]] = [
    {"step": 10, "robot": "a", "learning_rate": 0.1, "loss": 1.0},
    {"step": 10, "robot": "b", "learning_rate": 0.1, "loss": 2.0},
    {"step": 10, "validation/a/loss": 3.0, "validation/a/l1/gripper": 0.5, "validation/b/loss": 4.0},
    {"step": 10, "robot": "b", "validation/token_accuracy": 0.25, "validation/note": "text"},
    {"step": 10, "robot": "b", "validation/l1/gripper": 0.75, "validation/samples": 9},
    {"step": 20, "robot": "a", "learning_rate": 0.2, "loss": 0.5},
    {"step": 20, "validation/a/loss": 2.5, "validation/spread": 1},
]


def run_of(folder: Path, rows: list[dict[str, Any]], timing: list[dict[str, Any]] | None = None) -> Path:
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if timing is not None:
        (folder / "throughput.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in timing))
    return folder


def test_training_is_by_robot(tmp_path: Path):
    metrics = RunMetrics.load(run_of(tmp_path, ROWS))
    assert metrics.robots == ["a", "b"]
    assert metrics.training("loss") == {"a": ([10, 20], [1.0, 0.5]), "b": ([10], [2.0])}
    assert metrics.learning_rate() == ([10, 20], [0.1, 0.2])
    assert metrics.usual_throughput is None


def test_any_validation_key_is_a_curve(tmp_path: Path):
    assert RunMetrics.load(run_of(tmp_path, ROWS)).validation() == {
        "loss": {"a": ([10, 20], [3.0, 2.5]), "b": ([10], [4.0])},
        "l1/gripper": {"a": ([10], [0.5]), "b": ([10], [0.75])},
        "token_accuracy": {"b": ([10], [0.25])},
        "spread": {"all": ([20], [1])},
    }


def test_throughput_is_a_median(tmp_path: Path):
    timing = [{"step": step, "samples_per_s": rate} for step, rate in ((1, 2.0), (2, 50.0), (3, 51.0))]
    metrics = RunMetrics.load(run_of(tmp_path, ROWS, timing))
    assert metrics.throughput() == ([1, 2, 3], [2.0, 50.0, 51.0])
    assert metrics.usual_throughput == 50.0


def test_a_run_at_work_may_be_in_the_middle_of_a_line(tmp_path: Path):
    run_of(tmp_path, ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "robot": "a", "lo')
    assert RunMetrics.load(tmp_path).training("loss")["a"][0] == [10, 20]


def test_no_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no run: no metrics\.jsonl"):
        RunMetrics.load(tmp_path)
