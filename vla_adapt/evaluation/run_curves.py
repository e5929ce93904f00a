"""Curves of one run, or of several beside each other, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vla_adapt.evaluation.run_metrics import RunMetrics, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = tuple[str, Mapping[str, Series]]  # title, name -> curve


def training_picture(metrics: RunMetrics) -> Figure:
    """Loss and token accuracy per robot, learning rate and, where it was logged, throughput."""
    panels: list[Panel] = [
        ("training loss", metrics.training("loss")),
        ("share of values in the right one of 256 bins", metrics.training("token_accuracy")),
        ("learning rate", {"": metrics.learning_rate()}),
    ]
    if metrics.timing:
        panels.append(("samples per second", {"": metrics.throughput()}))
    return panels_picture(panels, columns=2, width=5.5)


def validation_picture(metrics: RunMetrics) -> Figure | None:
    """A panel per metric, a curve per robot; None when nothing was validated while training."""
    found = metrics.validation()
    return panels_picture([*found.items()], columns=4, width=2.75, marker=".") if found else None


def comparison_picture(runs: Mapping[str, RunMetrics]) -> Figure:
    """A panel per robot: the training loss of each run (name -> numbers), and its validation loss if any."""
    robots = dict.fromkeys(robot for metrics in runs.values() for robot in metrics.robots)
    panels: list[Panel] = []
    for what, of_run in (
        ("training loss", lambda metrics: metrics.training("loss")),
        ("validation loss", lambda metrics: metrics.validation().get("loss", {})),
    ):
        for robot in robots:
            curves = {
                name: of_run(metrics)[robot] for name, metrics in runs.items() if robot in of_run(metrics)
            }
            if curves:
                panels.append((f"{robot}: {what}", curves))
    return panels_picture(panels, columns=2, width=5.5)


def panels_picture(panels: list[Panel], columns: int, width: float, marker: str = "") -> Figure:
    """Panels of curves over steps; one legend where all of them have the same names."""
    from matplotlib.figure import Figure as NewFigure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = NewFigure(figsize=(width * columns, 0.55 * width * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    shown: list[str] = []
    for axis, (title, curves) in zip(axes.flat, panels, strict=False):
        _draw(axis, title, curves, marker)
        if any(curves) and list(curves) != shown:
            axis.legend(fontsize=7)
            shown = list(curves)
    return figure


def _draw(axis: Any, title: str, curves: Mapping[str, Series], marker: str) -> None:
    for name, (steps, values) in curves.items():
        point = marker or ("." if len(steps) == 1 else "")
        axis.plot(steps, values, label=name, linewidth=1, marker=point, markersize=4)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("step", fontsize=7)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
