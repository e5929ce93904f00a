"""Who gains and who loses: an ablation's runs as means over seeds and paired differences to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
from rich.table import Table

from vla_adapt.evaluation.ablation import Ablation, CellResult
from vla_adapt.evaluation.interval import rate_text, t_interval

WORSE, BETTER, UNCLEAR, REFERENCE = "WORSE", "BETTER", "no difference shown", "reference"
STYLES = {WORSE: "bold red", BETTER: "bold green", UNCLEAR: "dim", REFERENCE: ""}
ALL = "mean of robots"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval (unbounded for one seed)."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        return Estimate(float(np.mean(values)), *t_interval(values))

    def text(self, digits: int = 3, sign: bool = False) -> str:
        """`0.279 [0.270, 0.288]`; with `sign` as `+0.012 [+0.004, +0.020]`."""
        kind = f"{'+' if sign else ''}.{digits}f"
        if not isfinite(self.low):
            return f"{self.mean:{kind}} [one seed]"
        return f"{self.mean:{kind}} [{self.low:{kind}}, {self.high:{kind}}]"

    def to_dict(self) -> dict[str, float | None]:
        """As JSON takes it: no bound is null."""
        return {name: value if isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Row:
    """One variant on one robot (or the mean of robots): held-out error, and its difference to the reference.

    `success` is pooled over seeds: (successes, episodes), None when nothing was driven.
    """

    variant: str
    robot: str
    error: Estimate
    difference: Estimate | None
    success: tuple[int, int] | None

    @property
    def verdict(self) -> str:
        """WORSE or BETTER only when the whole interval of the paired difference is on that side of 0."""
        if self.difference is None:
            return REFERENCE
        if self.difference.low > 0:
            return WORSE
        return BETTER if self.difference.high < 0 else UNCLEAR

    @property
    def line(self) -> str:
        """`WORSE: mmd on ur5e, held-out error +0.013 [+0.004, +0.022] against own`, without the reference."""
        assert self.difference is not None
        return f"{self.verdict}: {self.variant} on {self.robot}, error {self.difference.text(sign=True)}"


class Comparison:
    """All runs of an ablation, compared on the seeds that a variant and the reference both have.

    Args:
        ablation: whose variants; the first is the reference.
        results: of its runs.
    """

    def __init__(self, ablation: Ablation, results: Sequence[CellResult]) -> None:
        self.ablation, self.results = ablation, list(results)
        self.variants = [name for name in ablation.variants if self._of(name)]
        self.reference = self.variants[0]
        self.robots = list(results[0].error)
        self.rows = [self._row(variant, robot) for variant in self.variants for robot in (*self.robots, ALL)]

    @property
    def seeds(self) -> int:
        return len({result.seed for result in self.results})

    def probe(self, variant: str, tap: str, before: bool = False) -> Estimate:
        """Balanced accuracy 0..1 of the better classifier, over seeds."""
        return Estimate.of([
            (result.probe_before if before else result.probe)[tap] for result in self._of(variant)
        ])  # fmt: skip

    @property
    def taps(self) -> list[str]:
        return list(self.results[0].probe)

    @property
    def chance(self) -> float:
        return self.results[0].chance

    def verdicts(self) -> list[tuple[str, str]]:
        """Who loses and who gains, robot by robot, (line, style): losses first, then gains."""
        judged = [row for row in self.rows if row.difference is not None]
        lines = [
            (f"{row.line} against {self.reference}", STYLES[verdict])
            for verdict in (WORSE, BETTER)
            for row in judged
            if row.verdict == verdict
        ]
        unclear = sum(row.verdict == UNCLEAR for row in judged)
        note = f"{unclear} of {len(judged)} comparisons with {self.reference}: {UNCLEAR}"
        return [*lines, (note, STYLES[UNCLEAR])]

    def notes(self) -> list[str]:
        """What the numbers are."""
        compared = (len(self.variants) - 1) * len(self.robots)
        return [
            f"{self.seeds} seed(s) per variant. Error: mean absolute error on held-out windows, in half "
            "action ranges, with 95 % t-intervals over seeds. They cover the chance of training (initial "
            "weights, order of samples), not that of the few held-out episodes, the same in all runs.",
            f"Difference: to {self.reference} on the same seed and data, paired. WORSE or BETTER: its whole "
            f"interval is on one side of 0. Of {compared} comparisons of a robot and a variant, "
            f"{0.05 * compared:.1f} are expected to be called one or the other by chance.",
            "Robot told from features: balanced accuracy of the better of a linear and an MLP probe, chance "
            f"{100 * self.chance:.0f} %. Low is invariant; it says nothing of the error.",
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = [
            {
                "variant": row.variant, "robot": row.robot, "error": row.error.to_dict(),
                "difference": row.difference and row.difference.to_dict(), "verdict": row.verdict,
                "success": row.success,
            }
            for row in self.rows
        ]  # fmt: skip
        probes = {
            variant: {tap: self.probe(variant, tap).to_dict() for tap in self.taps}
            for variant in self.variants
        }
        return {
            "ablation": self.ablation.model_dump(),
            "reference": self.reference,
            "rows": rows,
            "probe": probes,
            "chance": self.chance,
            "runs": [result.to_dict() for result in self.results],
        }

    def _of(self, variant: str) -> list[CellResult]:
        return [result for result in self.results if result.variant == variant]

    def _row(self, variant: str, robot: str) -> Row:
        mine = {result.seed: _error(result, robot) for result in self._of(variant)}
        theirs = {result.seed: _error(result, robot) for result in self._of(self.reference)}
        paired = [mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()]
        difference = Estimate.of(paired) if variant != self.reference and paired else None
        return Row(variant, robot, Estimate.of([*mine.values()]), difference, self._success(variant, robot))

    def _success(self, variant: str, robot: str) -> tuple[int, int] | None:
        found = [
            rate
            for result in self._of(variant)
            for name, rate in result.success.items()
            if robot in (name, ALL)
        ]
        return (sum(won for won, _ in found), sum(tried for _, tried in found)) if found else None


def _error(result: CellResult, robot: str) -> float:
    return float(np.mean([*result.error.values()])) if robot == ALL else result.error[robot]


def error_rows(found: Comparison) -> list[tuple[list[str], str]]:
    """(cells, style) per variant and robot; see `ERROR_HEAD`."""
    rows = []
    for row in found.rows:
        difference = "-" if row.difference is None else row.difference.text(sign=True)
        success = "-" if row.success is None else rate_text(*row.success)
        rows.append(
            (
                [row.variant, row.robot, row.error.text(), difference, row.verdict, success],
                STYLES[row.verdict],
            )
        )
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


ERROR_HEAD = ["variant", "robot", "held-out error", "difference (paired)", "verdict", "closed-loop success"]


def probe_head(found: Comparison) -> list[str]:
    return ["variant", "mean error", *(f"robot told from {tap}, %" for tap in found.taps)]


def rich_tables(found: Comparison) -> list[Table]:
    """Both tables for a terminal."""
    errors = Table(*ERROR_HEAD, title=f"{found.ablation.name}: error per robot")
    for cells, style in error_rows(found):
        errors.add_row(*cells, style=style, end_section=cells[1] == ALL)
    told = Table(*probe_head(found), title=f"chance {100 * found.chance:.0f} %")
    for cells in probe_rows(found):
        told.add_row(*cells)
    return [errors, told]


def markdown(found: Comparison) -> str:
    """Both tables, verdicts first."""
    lines = [f"# {found.ablation.title or found.ablation.name}", ""]
    lines += [f"- {_loud(line)}" for line, _ in found.verdicts()]
    lines += [
        "",
        *_markdown_table(ERROR_HEAD, [[_loud(cell) for cell in cells] for cells, _ in error_rows(found)]),
    ]
    lines += ["", *_markdown_table(probe_head(found), probe_rows(found)), ""]
    return "\n".join([*lines, *found.notes(), ""])


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _loud(text: str) -> str:
    for verdict in (WORSE, BETTER):
        text = text.replace(verdict, f"**{verdict}**")
    return text
