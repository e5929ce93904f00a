"""One HTML page about one or more runs: curves, tables, predicted against true actions, camera frames."""

from __future__ import annotations

import html
from pathlib import Path

from vla_adapt.adaptation.folder import replace_text
from vla_adapt.evaluation.closed_loop_section import closed_loop_section
from vla_adapt.evaluation.comparison_section import comparison_section
from vla_adapt.evaluation.html_parts import page_head
from vla_adapt.evaluation.run_facts import RunFacts, distinct_names
from vla_adapt.evaluation.run_section import run_section


def write_report(runs: list[Path], out: Path, closed_loop_files: list[Path] | None = None) -> None:
    """Write the page; it needs neither model nor data, and loads nothing from elsewhere when it is read.

    Args:
        runs: folders that `scripts/finetune.py` left, or is at work in: at least `metrics.jsonl` is there.
        out: the HTML file; everything is embedded in it.
        closed_loop_files: results of `vla-adapt evaluate --closed-loop --out`; by default `closed_loop.json`
            and `controls.json` found in the run folders. Camera strips beside them are shown too.

    Raises:
        ValueError: a folder that holds no run.
    """
    runs = list(dict.fromkeys(runs))
    found = dict(zip(distinct_names(runs), (RunFacts.load(run) for run in runs), strict=True))
    title = html.escape(f"vla_adapt: {', '.join(found)}")
    parts = [page_head(title), f"<h1>{title}</h1>"]
    parts += comparison_section(found)
    if closed_loop_files is None:
        closed_loop_files = [run / name for run in runs for name in ("closed_loop.json", "controls.json")]
    for file in closed_loop_files:
        if file.is_file():
            parts += closed_loop_section(file)
    for name, run in found.items():
        parts += run_section(name, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, "\n".join(parts) + "\n")
