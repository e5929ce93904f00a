"""The part of a report about driven robots: successes with intervals, and what a camera saw."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_adapt.evaluation.closed_loop import ClosedLoopResult, load_results
from vla_adapt.evaluation.html_parts import embed, embed_figure, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def closed_loop_section(file: Path) -> list[str]:
    """HTML of a file that `vla-adapt evaluate --closed-loop --out` wrote."""
    results = load_results(file)
    rows = [
        [result.robot, result.label or "adapter", result.text(), f"{np.mean(result.steps):.0f}"]
        for result in results
    ]
    parts = [f"<h2>Closed loop ({html.escape(file.stem)})</h2>"]
    parts.append(
        "<p>Success in simulation, driven through the running server; intervals are 95 % Wilson.</p>"
    )
    parts.append(table(["robot", "policy", "success", "mean steps"], rows))
    parts.append(embed_figure(_success_picture(results)))
    for strip in sorted((file.parent / "frames").glob("*.png")) if file.stem == "closed_loop" else []:
        parts.append(f"<h3>{html.escape(strip.stem)}: one episode as its camera saw it</h3>")
        parts.append(embed(strip.read_bytes()))
    return parts


def _success_picture(results: list[ClosedLoopResult]) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(9, 0.42 * len(results) + 0.9), layout="constrained")
    axis = figure.subplots()
    for row, result in enumerate(reversed(results)):
        rate = result.successes / result.episodes
        low, high = result.interval
        reach = [[max(rate - low, 0)], [max(high - rate, 0)]]
        axis.errorbar(rate, row, xerr=reach, fmt="o", color="#06c", capsize=4)
    names = [f"{r.robot} · {r.label or 'adapter'}" for r in reversed(results)]
    axis.set_yticks(range(len(results)), names, fontsize=9)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("success rate, 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    return figure
