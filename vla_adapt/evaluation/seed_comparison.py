"""Who gains and who loses: an ablation's runs as means over seeds and paired differences to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from vla_adapt.evaluation.ablation import Ablation
from vla_adapt.evaluation.ablation_run import CellResult
from vla_adapt.evaluation.interval import t_interval

WORSE, BETTER, UNCLEAR, REFERENCE = "WORSE", "BETTER", "no difference shown", "reference"
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
        """`WORSE: mmd on ur5e, error +0.013 [+0.004, +0.022]`."""
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
        """(verdict, line): who loses, robot by robot, then who gains, then how much was not shown."""
        judged = [row for row in self.rows if row.difference is not None]
        lines = [
            (verdict, f"{row.line} against {self.reference}")
            for verdict in (WORSE, BETTER)
            for row in judged
            if row.verdict == verdict
        ]
        single = [row for row in judged if row.robot != ALL]
        unclear = [row for row in single if row.verdict == UNCLEAR]
        note = f"{len(unclear)} of {len(single)} comparisons of a robot with {self.reference}: {UNCLEAR}"
        if unclear:
            most = max(unclear, key=lambda row: row.difference.mean if row.difference else 0.0)
            note += f"; the largest average loss among them: {most.line.removeprefix(f'{UNCLEAR}: ')}"
        return [*lines, (UNCLEAR, note)]

    def notes(self) -> list[str]:
        """What the numbers are."""
        compared = (len(self.variants) - 1) * len(self.robots)
        return [
            f"{self.seeds} seed(s) per variant. Error: mean absolute error on held-out windows, in half "
            "action ranges, with 95 % t-intervals over seeds. They cover the chance of training (initial "
            "weights, order of samples), not that of the few held-out episodes, the same in all runs.",
            f"Difference: to {self.reference} on the same seed and data, paired. WORSE or BETTER: its whole "
            f"interval is on one side of 0. Half of the intervals reach {self._reach():.3f} or more to each "
            f"side: smaller differences are easily missed. Of {compared} comparisons of robot and variant, "
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

    def _reach(self) -> float:
        """Median half-width of the intervals of paired differences."""
        differences = [row.difference for row in self.rows if row.difference is not None]
        return float(np.median([found.high - found.mean for found in differences])) if differences else inf

    def _of(self, variant: str) -> list[CellResult]:
        return [result for result in self.results if result.variant == variant]

    def _row(self, variant: str, robot: str) -> Row:
        mine = {result.seed: _error(result, robot) for result in self._of(variant)}
        theirs = {result.seed: _error(result, robot) for result in self._of(self.reference)}
        paired = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
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
