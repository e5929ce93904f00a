"""The part of a report that lays several runs side by side: held-out error per robot, cost, loss curves."""

from __future__ import annotations

import html
from collections.abc import Mapping

from vla_adapt.evaluation.html_parts import embed_figure, table
from vla_adapt.evaluation.run_curves import comparison_picture
from vla_adapt.evaluation.run_facts import RunFacts
from vla_adapt.evaluation.run_section import ERROR_NOTE, verdict


def comparison_section(runs: Mapping[str, RunFacts]) -> list[str]:
    """HTML for runs by name; nothing for a single one."""
    if len(runs) < 2:
        return []
    robots = list(dict.fromkeys(robot for run in runs.values() for robot in run.robots))
    head = ["run", *(html.escape(robot) for robot in robots), "samples per second", "seconds"]
    parts = ["<h2>Runs side by side</h2>"]
    parts.append(f"<p><small>{ERROR_NOTE} In brackets: over that of predicting the mean.</small></p>")
    parts.append(table(head, [_row(name, run, robots) for name, run in runs.items()]))
    trained = {name: run.metrics for name, run in runs.items() if run.metrics.robots}
    if trained:
        parts.append(embed_figure(comparison_picture(trained)))
    return parts


def _row(name: str, run: RunFacts, robots: list[str]) -> list[str]:
    cells = []
    for robot in robots:
        row = run.judged.get(robot)
        cells.append("" if row is None else f"{row['error']:.3f} ({verdict(row)})")
    speed, seconds = run.metrics.usual_throughput, run.summary.get("seconds")
    cells.append("" if speed is None else f"{speed:.1f}")
    cells.append("not finished" if seconds is None else f"{seconds:.0f}")
    return [html.escape(name), *cells]
