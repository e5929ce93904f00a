"""What the probe found in a run, as the rows of a table and in words."""

from __future__ import annotations

from vla_adapt.evaluation.probe_run import TAPS, RunProbe

HEAD = ("features", "classifier", "before", "after", "chance")


def probe_rows(found: RunProbe) -> list[list[str]]:
    """One row per tap and classifier: balanced accuracy with its 95 % interval, before and after training."""
    rows = []
    for tap in TAPS:
        before, after = found.before[tap], found.after[tap]
        for kind in ("linear", "mlp"):
            scores = getattr(before, kind).text, getattr(after, kind).text
            rows.append([tap, kind, *scores, f"{100 * after.chance:.1f} %"])
    return rows


def probe_notes(found: RunProbe) -> list[str]:
    """How to read the rows, and the action error they were reached at."""
    some = found.after[TAPS[0]]
    errors = ", ".join(f"{robot} {error:.3f}" for robot, error in found.error.items())
    whose = {"base": "the base's own head", "robot": "the robots' trained heads (the base has none)"}
    return [
        f"How well a fresh classifier tells {len(some.robots)} robots apart: balanced accuracy [95 % "
        f"interval], cross-validated by episode ({some.rows} windows of {some.episodes} episodes).",
        f"Before: the bare base with {whose[found.head_before]}. After: each robot through its own adapter "
        "and head, as served. 'patches' is what the image became, 'hidden' the states the head reads, where "
        "a head's own tokens and the robot's state may have left their mark.",
        f"Held-out action error 'after' belongs to: {errors or 'not measured, nothing was held out'}.",
    ]
