"""What is drawn: a curve per robot, a panel per number, runs over each other."""

from __future__ import annotations

from vla_adapt.evaluation.run_curves import comparison_picture, training_picture, validation_picture
from vla_adapt.evaluation.run_metrics import RunMetrics

ROWS = [
    {"step": step, "robot": robot, "learning_rate": 0.1, "loss": loss / step, "token_accuracy": 0.5}
    for step in (1, 2, 3)
    for robot, loss in (("a", 1.0), ("b", 2.0))
]
VALIDATED = [{"step": 2, "validation/a/loss": 0.7, "validation/a/l1/gripper": 0.2}]
TIMED = RunMetrics(ROWS, [{"step": 3, "samples_per_s": 9.0}])


def panels(figure) -> dict[str, dict[str, list[float]]]:
    """Title -> label -> drawn values."""
    return {
        axis.get_title(): {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
        for axis in figure.axes
        if axis.get_title()
    }


def test_training():
    drawn = panels(training_picture(TIMED))
    assert drawn["training loss"] == {"a": [1.0, 0.5, 1 / 3], "b": [2.0, 1.0, 2 / 3]}
    assert [*drawn["samples per second"].values()] == [[9.0]]
    assert [*drawn["learning rate"].values()] == [[0.1] * 3]
    assert "samples per second" not in panels(training_picture(RunMetrics(ROWS, []))), "of an older version"


def test_validation():
    assert validation_picture(TIMED) is None
    figure = validation_picture(RunMetrics(ROWS + VALIDATED, []))
    assert figure is not None
    assert panels(figure) == {"loss": {"a": [0.7]}, "l1/gripper": {"a": [0.2]}}


def test_runs_beside_each_other():
    other = RunMetrics([row for row in ROWS if row["robot"] == "b"] + VALIDATED, [])
    drawn = panels(comparison_picture({"one": TIMED, "two": other}))
    assert {title: set(curves) for title, curves in drawn.items()} == {
        "a: training loss": {"one"},
        "b: training loss": {"one", "two"},
        "a: validation loss": {"two"},
    }
    assert drawn["a: validation loss"] == {"two": [0.7]}
