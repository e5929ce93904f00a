"""An ablation as one picture and one HTML page: error per robot, robots told from features, losses first."""

from __future__ import annotations

import html
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_adapt.evaluation.ablation_table import ERROR_HEAD, error_rows, probe_head, probe_rows
from vla_adapt.evaluation.html_parts import embed_figure, page_head, table
from vla_adapt.evaluation.seed_comparison import ALL, BETTER, WORSE, Comparison, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {WORSE: "#c00000", BETTER: "#107010"}
_CLASSES = {WORSE: "bad loud", BETTER: "good loud"}


def write_page(found: Comparison, file: Path) -> None:
    """Write the page, and the picture beside it as PNG."""
    picture = ablation_picture(found)
    picture.savefig(file.with_suffix(".png"), dpi=110)
    title = html.escape(found.ablation.title or found.ablation.name)
    parts = [page_head(title), f"<h1>{title}</h1>"]
    parts += [
        f"<p class='{_CLASSES.get(verdict, '')}'>{html.escape(line)}</p>"
        for verdict, line in found.verdicts()
    ]
    parts.append(embed_figure(picture))
    parts.append("<h2>Error per robot</h2>")
    parts.append(table(ERROR_HEAD, [[_loud(cell) for cell in cells] for cells in error_rows(found)]))
    parts.append(f"<h2>Can the robot be told from the features? (chance {100 * found.chance:.0f} %)</h2>")
    parts.append(table(probe_head(found), [[html.escape(cell) for cell in row] for row in probe_rows(found)]))
    parts += [f"<p><small>{html.escape(note)}</small></p>" for note in found.notes()]
    file.write_text("\n".join(parts) + "\n")


def ablation_picture(found: Comparison) -> Figure:
    """Left: error per robot and variant; right: how well the robot is told, against chance. 95 % intervals.

    Marks of a variant that is worse or better on a robot than the reference are red or green.
    """
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    robots = [*found.robots, ALL]
    width = 0.8 / len(found.variants)
    for number, variant in enumerate(found.variants):
        rows = [row for row in found.rows if row.variant == variant]
        places = np.arange(len(robots)) + (number - (len(found.variants) - 1) / 2) * width
        _points(left, places, [row.error for row in rows], f"C{number}", variant)
        for place, row in zip(places, rows, strict=True):
            if row.verdict in _MARKS:
                left.annotate(
                    row.verdict, (place, row.error.mean), (0, 14), textcoords="offset points", rotation=90,
                    color=_MARKS[row.verdict], fontsize=7, fontweight="bold", ha="center", va="bottom",
                )  # fmt: skip
        told = [found.probe(variant, tap) for tap in found.taps]
        _points(right, np.arange(len(told)) + places[0], told, f"C{number}", variant)
    left.set_xticks(range(len(robots)), robots, fontsize=8)
    left.set_title("held-out error (half action ranges)", fontsize=10)
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.axhline(found.chance, color="#888", linestyle="--", linewidth=1, label="chance")
    for place, tap in enumerate(found.taps):
        before = found.probe(found.reference, tap, before=True).mean
        right.hlines(before, place - 0.4, place + 0.4, color="#888", linewidth=1)
        right.text(place + 0.4, before, " before", fontsize=7, va="center", color="#888")
    right.set_xticks(range(len(found.taps)), found.taps, fontsize=8)
    right.set_title("robot told from features (balanced accuracy)", fontsize=10)
    right.set_ylim(0, 1.05)
    for axis in (left, right):
        axis.grid(axis="y", alpha=0.3)
    return figure


def _points(axis: Any, places: np.ndarray, estimates: list[Estimate], color: str, label: str) -> None:
    """Means with their intervals; one seed has none."""
    means = [estimate.mean for estimate in estimates]
    reach = [estimate.high - estimate.mean if isfinite(estimate.high) else 0.0 for estimate in estimates]
    axis.errorbar(places, means, yerr=reach, fmt="o", markersize=4, capsize=3, color=color, label=label)


def _loud(cell: str) -> str:
    return f"<span class='{_CLASSES[cell]}'>{cell}</span>" if cell in _CLASSES else html.escape(cell)
