"""The part of a report about one run: curves, tables, drawn episodes, surroundings, recipe."""

from __future__ import annotations

import html
import json
from typing import Any

from vla_adapt.evaluation.drawn_episodes import DrawnEpisode
from vla_adapt.evaluation.drawn_picture import episode_picture
from vla_adapt.evaluation.html_parts import embed, embed_figure, folded, table
from vla_adapt.evaluation.mean_ratio import mean_ratio
from vla_adapt.evaluation.probe_report import HEAD, probe_notes, probe_rows
from vla_adapt.evaluation.probe_run import PROBE_PICTURE, RunProbe
from vla_adapt.evaluation.run_curves import training_picture, validation_picture
from vla_adapt.evaluation.run_facts import RunFacts

ERROR_NOTE = "Mean absolute error over the chunk on held-out episodes, in half action ranges (q01..q99)."
_ROBOT_HEAD = (
    "robot", "episodes", "steps", "parameters trained", "held-out windows", "error", "predict-the-mean",
    "ratio",
)  # fmt: skip


def run_section(name: str, run: RunFacts) -> list[str]:
    """HTML of one run."""
    parts = [f"<h2>Run {html.escape(name)}</h2>"]
    parts.append(f"<p>{html.escape('; '.join(run.headline))}</p>")
    parts.append(robot_table(run))
    if run.metrics.robots:
        parts += ["<h3>Training</h3>", embed_figure(training_picture(run.metrics))]
    validated = validation_picture(run.metrics)
    if validated is not None:
        parts += ["<h3>Validation while training</h3>", embed_figure(validated)]
    if run.judged:
        parts.append("<h3>Open loop on held-out episodes, by action component</h3>")
        parts += [_slot_table(row) for row in run.judged.values()]
    parts += _drawn(run.drawn)
    parts += _probe(run)
    for number, start in enumerate(run.starts, start=1):
        told = json.dumps(start, indent=1)
        title = f"start {number}, after step {start['after_step']}: software and machine"
        parts.append(folded(title, f"<pre>{html.escape(told)}</pre>"))
    parts.append(folded("resolved recipe", f"<pre>{html.escape(run.recipe)}</pre>"))
    return parts


def robot_table(run: RunFacts) -> str:
    """A row per robot: its data, what of it was trained, its verdict on held-out episodes."""
    rows = [_robot_row(run, robot) for robot in run.robots]
    note = f"<p><small>{ERROR_NOTE}</small></p>" if run.judged else ""
    return note + table(_ROBOT_HEAD, rows)


def verdict(row: dict[str, Any]) -> str:
    """Error over that of predicting the mean, green under 1."""
    ratio = mean_ratio(row)
    return f"<span class={'good' if ratio < 1 else 'bad'}>{ratio:.2f}</span>"


def _robot_row(run: RunFacts, robot: str) -> list[str]:
    told, judged = run.summary.get("robots", {}).get(robot), run.judged.get(robot)
    cells = ["", "", ""]
    if told is not None:
        counts = (sum(data[what] for data in told["data"]) for what in ("episodes", "steps"))
        cells = [f"{count:,}" for count in (*counts, told["parameters"])]
    if judged is None:
        return [html.escape(robot), *cells, "none", "", "", ""]
    errors = [f"{judged[key]:.3f}" for key in ("error", "baseline_error")]
    return [html.escape(robot), *cells, str(judged["windows"]), *errors, verdict(judged)]


def _slot_table(result: dict[str, Any]) -> str:
    rows = [
        [slot["slot"], f"{slot['error']:.4f}", f"{slot['baseline_error']:.4f}", slot["unit"]]
        for slot in result["slots"]
    ]
    return folded(result["robot"], table(["component", "error", "predict-the-mean", "unit"], rows))


def _drawn(drawn: list[DrawnEpisode]) -> list[str]:
    """Of each robot the first episode is seen at once, the others are folded."""
    parts, seen = [], set[str]()
    if drawn:
        parts.append("<h3>Predicted and recorded actions over held-out episodes</h3>")
        parts.append(
            "<p><small>Dark: recorded. Red: the first action of each predicted chunk; faint: all of the "
            "chunk. The policy sees the recorded observations, not those that its own actions would lead to."
            "</small></p>"
        )
    for episode in drawn:
        what = f"{episode.robot}: {episode.dataset}, episode {episode.episode}, “{episode.instruction}”"
        picture = embed_figure(episode_picture(episode))
        if episode.robot in seen:
            parts.append(folded(what, picture))
        else:
            parts.append(f"<h4>{html.escape(what)}</h4>{picture}")
        seen.add(episode.robot)
    return parts


def _probe(run: RunFacts) -> list[str]:
    """Of `vla-adapt evaluate --probe`, where that was run."""
    found = RunProbe.load(run.path)
    if found is None:
        return []
    parts = ["<h3>Can the robot be told from the features?</h3>"]
    parts += [f"<p><small>{html.escape(note)}</small></p>" for note in probe_notes(found)]
    parts.append(table(list(HEAD), probe_rows(found)))
    picture = run.path / PROBE_PICTURE
    if picture.is_file():
        parts.append(embed(picture.read_bytes()))
    return parts
