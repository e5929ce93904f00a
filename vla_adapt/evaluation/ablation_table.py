"""The tables of an ablation: error per robot and how well robots are told, for a terminal and as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from vla_adapt.evaluation.interval import rate_text
from vla_adapt.evaluation.seed_comparison import ALL, BETTER, REFERENCE, UNCLEAR, WORSE, Comparison, Estimate

STYLES = {WORSE: "bold red", BETTER: "bold green", UNCLEAR: "dim", REFERENCE: ""}
ERROR_HEAD = ["variant", "robot", "held-out error", "difference (paired)", "verdict", "closed-loop success"]


def error_rows(found: Comparison) -> list[list[str]]:
    """Cells per variant and robot; see `ERROR_HEAD`."""
    rows = []
    for row in found.rows:
        difference = "-" if row.difference is None else row.difference.text(sign=True)
        success = "-" if row.success is None else rate_text(*row.success)
        rows.append([row.variant, row.robot, row.error.text(), difference, row.verdict, success])
    return rows


def probe_rows(found: Comparison) -> list[list[str]]:
    """Cells per variant: mean error, and how well the robot is told from each tap; see `probe_head`."""

    def told(estimate: Estimate) -> str:
        return Estimate(*(100 * value for value in (estimate.mean, estimate.low, estimate.high))).text(1)

    means = {row.variant: row.error.text() for row in found.rows if row.robot == ALL}
    before = [told(found.probe(found.reference, tap, before=True)) for tap in found.taps]
    rows = [["(base, before training)", "-", *before]]
    return rows + [
        [variant, means[variant], *(told(found.probe(variant, tap)) for tap in found.taps)]
        for variant in found.variants
    ]


def probe_head(found: Comparison) -> list[str]:
    return ["variant", "mean error", *(f"robot told from {tap}, %" for tap in found.taps)]


def rich_tables(found: Comparison) -> list[Table]:
    """Both tables for a terminal."""
    errors = Table(*ERROR_HEAD, title=f"{found.ablation.name}: error per robot")
    for cells in error_rows(found):
        errors.add_row(*cells, style=STYLES[cells[4]], end_section=cells[1] == ALL)
    told = Table(*probe_head(found), title=f"chance {100 * found.chance:.0f} %")
    for cells in probe_rows(found):
        told.add_row(*cells)
    return [errors, told]


def markdown(found: Comparison) -> str:
    """Both tables, verdicts first."""
    lines = [f"# {found.ablation.title or found.ablation.name}", ""]
    lines += [f"- {_loud(line)}" for _, line in found.verdicts()]
    errors = [[_loud(cell) for cell in cells] for cells in error_rows(found)]
    lines += ["", *_markdown_table(ERROR_HEAD, errors)]
    lines += ["", *_markdown_table(probe_head(found), probe_rows(found)), ""]
    return "\n".join([*lines, *found.notes(), ""])


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _loud(text: str) -> str:
    for verdict in (WORSE, BETTER):
        text = text.replace(verdict, f"**{verdict}**")
    return text
