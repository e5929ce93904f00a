"""One HTML page about one or more runs: curves, tables, predicted against true actions, camera frames."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.evaluation.closed_loop import ClosedLoopResult, load_results
from vla_adapt.evaluation.html_parts import embed, embed_figure, page_head, table
from vla_adapt.evaluation.probe_report import HEAD, probe_notes, probe_rows
from vla_adapt.evaluation.probe_run import PROBE_PICTURE, RunProbe


def write_report(runs: list[Path], out: Path, closed_loop_files: list[Path] | None = None) -> None:
    """Write the page for finished runs (folders that `scripts/finetune.py` left).

    Args:
        runs: run folders; each holds `metrics.jsonl`, `open_loop.json` and `recipe.yaml`, and `probe.json` if
            `vla-adapt evaluate --probe` was run on it.
        out: the HTML file; everything is embedded in it.
        closed_loop_files: results of `vla-adapt evaluate --closed-loop --out`; by default `closed_loop.json`
            and `controls.json` found in the run folders. Camera strips beside them are shown too.

    Raises:
        ValueError: a run folder that holds no finished run.
    """
    parts = [page_head("vla_adapt report")]
    parts.append(f"<h1>vla_adapt: {html.escape(', '.join(run.name for run in runs))}</h1>")
    closed = closed_loop_files
    if closed is None:
        closed = [run / name for run in runs for name in ("closed_loop.json", "controls.json")]
    results = [(file, load_results(file)) for file in closed if file.is_file()]
    for file, found in results:
        parts += _closed_loop_section(file, found)
    for run in runs:
        parts += _run_section(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts))


def _closed_loop_section(file: Path, results: list[ClosedLoopResult]) -> list[str]:
    rows = [
        [result.robot, result.label or "adapter", result.text(), f"{np.mean(result.steps):.0f}"]
        for result in results
    ]
    parts = [f"<h2>Closed loop ({html.escape(file.stem)})</h2>"]
    parts.append(
        "<p>Success in simulation, driven through the running server; intervals are 95 % Wilson.</p>"
    )
    parts.append(table(["robot", "policy", "success", "mean steps"], rows))
    parts.append(_success_picture(results))
    for strip in sorted((file.parent / "frames").glob("*.png")) if file.stem == "closed_loop" else []:
        parts.append(f"<h3>{html.escape(strip.stem)}: one episode as its camera saw it</h3>")
        parts.append(embed(strip.read_bytes()))
    return parts


def _run_section(run: Path) -> list[str]:
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} holds no run: no metrics.jsonl; train with scripts/finetune.py first")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line]
    metrics = [row for row in metrics if "loss" in row]  # others are of validation
    parts = [f"<h2>Run {html.escape(run.name)}</h2>"]
    parts.append(_curves(metrics))
    open_loop = run / "open_loop.json"
    judged = json.loads(open_loop.read_text()) if open_loop.is_file() else []
    if judged:
        parts += _open_loop_section(judged)
    parts += _probe_section(run)
    recipe = (run / "recipe.yaml").read_text() if (run / "recipe.yaml").is_file() else ""
    parts.append(f"<details><summary>resolved recipe</summary><pre>{html.escape(recipe)}</pre></details>")
    return parts


def _open_loop_section(results: list[dict[str, Any]]) -> list[str]:
    rows = []
    for result in results:
        error, baseline = result["error"], result["baseline_error"]
        verdict = f"<span class={'good' if error < baseline else 'bad'}>{error / baseline:.2f}</span>"
        rows.append([result["robot"], str(result["windows"]), f"{error:.3f}", f"{baseline:.3f}", verdict])
    head = ["robot", "held-out windows", "error", "predict-the-mean", "ratio"]
    parts = ["<h3>Open loop on held-out episodes</h3>"]
    parts.append(
        "<p><small>Mean absolute error over the chunk, in half action ranges (q01..q99).</small></p>"
    )
    parts.append(table(head, rows))
    for result in results:
        parts.append(_slot_table(result))
        parts.append(_trace_picture(result))
    return parts


def _probe_section(run: Path) -> list[str]:
    """Of `vla-adapt evaluate --probe`, where that was run."""
    found = RunProbe.load(run)
    if found is None:
        return []
    parts = ["<h3>Can the robot be told from the features?</h3>"]
    parts += [f"<p><small>{html.escape(note)}</small></p>" for note in probe_notes(found)]
    parts.append(table(list(HEAD), probe_rows(found)))
    if (run / PROBE_PICTURE).is_file():
        parts.append(embed((run / PROBE_PICTURE).read_bytes()))
    return parts


def _slot_table(result: dict[str, Any]) -> str:
    rows = [
        [slot["slot"], f"{slot['error']:.4f}", f"{slot['baseline_error']:.4f}", slot["unit"]]
        for slot in result["slots"]
    ]
    title = f"<details><summary>{html.escape(result['robot'])}: error by slot</summary>"
    return title + table(["slot", "error", "predict-the-mean", "unit"], rows) + "</details>"


def _curves(metrics: list[dict[str, Any]]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    robots = sorted({row["robot"] for row in metrics})
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4))
    for robot in robots:
        rows = [row for row in metrics if row["robot"] == robot]
        for axis, key in zip(axes, ("loss", "token_accuracy"), strict=True):
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=robot, linewidth=1)
    for axis, title in zip(
        axes, ("training loss", "share of values in the right one of 256 bins"), strict=True
    ):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return _figure(figure)


def _trace_picture(result: dict[str, Any]) -> str:
    import matplotlib.pyplot as plt

    trace = result["trace"]
    names = trace["slots"]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(11, 1.9 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name, true, predicted in zip(
        axes.flat, names, np.transpose(trace["true"]), np.transpose(trace["predicted"]), strict=False
    ):
        axis.plot(true, color="#888", linewidth=1.2, label="recorded")
        axis.plot(predicted, color="#c30", linewidth=1, label="predicted")
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7)
    what = "one held-out episode, first action of each chunk (SI units)"
    return f"<h4>{html.escape(result['robot'])}: {what}</h4>{_figure(figure)}"


def _success_picture(results: list[ClosedLoopResult]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 0.42 * len(results) + 0.9))
    for row, result in enumerate(reversed(results)):
        rate = result.successes / result.episodes
        low, high = result.interval
        axis.errorbar(
            rate, row, xerr=[[max(rate - low, 0)], [max(high - rate, 0)]], fmt="o", color="#06c", capsize=4
        )
    axis.set_yticks(
        range(len(results)), [f"{r.robot} · {r.label or 'adapter'}" for r in reversed(results)], fontsize=9
    )
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("success rate, 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    return _figure(figure)


def _figure(figure: Any) -> str:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    plt.close(figure)
    return embed_figure(figure)
