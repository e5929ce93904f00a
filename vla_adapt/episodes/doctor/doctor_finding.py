"""What the doctor says: one finding, with its evidence and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
# So many episodes that are unlike the rest are no accident: a part that was recorded or converted otherwise.
LEAST_ODD, ODD_SHARE = 2, 0.02
MANY = 0.1
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found in one dataset.

    Attributes:
        code: which defect, a word that stays the same between versions ("gripper_sign").
        severity: error: training on it goes wrong; warning: look at it first; note: good to know.
        dataset: its name.
        evidence: what was seen, where, how often; one sentence with numbers.
        advice: what to do.
        numbers: the measured values the evidence rests on, JSON-able.
    """

    code: str
    severity: Severity
    dataset: str
    evidence: str
    advice: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "code": self.code, "severity": self.severity, "dataset": self.dataset,
            "evidence": self.evidence, "advice": self.advice, "numbers": dict(self.numbers),
        }  # fmt: skip


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise in the given order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def is_a_part(odd: Sequence[object], of: int) -> bool:
    """Whether odd episodes, of so many that could be judged, are enough to be told about."""
    return len(odd) >= max(LEAST_ODD, ODD_SHARE * of)


def part_severity(odd: Sequence[object], of: int) -> Severity:
    """An error where the odd ones are many; a warning where a few may be the measurement's fault."""
    return "error" if len(odd) >= MANY * of else "warning"


def share(count: int, of: int, what: str) -> str:
    """ "12 of 400 steps (3 %)"."""
    return f"{count} of {of} {what} ({100 * count / max(of, 1):.3g} %)"


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are: "train/1, train/5 and 7 more"."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
