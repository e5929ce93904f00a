"""Checks of joint commands against measured joints: order, sign and unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from vla_adapt.episodes.doctor.doctor_finding import Finding, listed
from vla_adapt.episodes.doctor.doctor_fit import fit_level
from vla_adapt.episodes.doctor.doctor_gripper import correlation
from vla_adapt.episodes.doctor.doctor_survey import Survey

LEAST_ROWS = 60
# A command drives another joint, or its own the other way, when it correlates with that so well, and with
# its own so much less.
OTHER, LESS = 0.8, 0.4
ODD_SLOPE = (0.2, 5.0)
DELTA_MARGIN = 0.1


def check_joints(survey: Survey) -> Iterator[Finding]:
    """Joint commands that drive another joint, the other way round, or in another unit."""
    for group in ("right_joints", "left_joints"):
        columns = _both(survey, group)
        if columns is None:
            continue
        command, measured, names = columns
        rows = survey.together(1)
        rows = rows[np.isfinite(command[rows]).all(axis=1) & np.isfinite(measured[rows]).all(axis=1)]
        rows = rows[np.isfinite(measured[rows + 1]).all(axis=1)]
        if len(rows) < LEAST_ROWS:
            continue
        target, mode = _target(command, measured, rows)
        yield from _order(survey, group, command[rows], target, names, mode)


def _order(
    survey: Survey,
    group: str,
    command: Float[np.ndarray, "M J"],
    target: Float[np.ndarray, "M J"],
    names: list[str],
    mode: str,
) -> Iterator[Finding]:
    count = len(names)
    table = np.array([[correlation(command[:, i], target[:, j]) for j in range(count)] for i in range(count)])
    wrong: list[str] = []
    for i in range(count):
        best = int(np.argmax(np.abs(table[i])))
        if abs(table[i, best]) > max(OTHER, table[i, i] + LESS):
            sign = "-" if table[i, best] < 0 else ""
            wrong.append(f"{names[i]} drives {sign}{names[best]} (correlation {table[i, best]:.2f})")
    if wrong:
        yield Finding(
            "joint_mismatch", "error", survey.name,
            f"{group}: {len(wrong)} of {count} commands do not fit the measured joint of their name "
            f"({mode}): {listed(wrong, 7)}",
            "correct order and signs of the joint columns in the entry or by a transform",
            {"correlations": table.round(3).tolist()},
        )  # fmt: skip
        return
    slopes = [
        float(np.polyfit(command[:, i], target[:, i], 1)[0]) for i in range(count) if table[i, i] > OTHER
    ]
    odd = [slope for slope in slopes if not ODD_SLOPE[0] < slope < ODD_SLOPE[1]]
    if odd and len(odd) == len(slopes):
        yield Finding(
            "action_scale", "error", survey.name,
            f"{group}: joints move {np.median(odd):.3g} rad for each commanded rad ({mode})",
            "check `unit` and `scale` of the joints in the embodiment (rad or deg?)",
            {"slopes": slopes},
        )  # fmt: skip


def _target(
    command: Float[np.ndarray, "N J"], measured: Float[np.ndarray, "N J"], rows: np.ndarray
) -> tuple[Float[np.ndarray, "M J"], str]:
    """What the commands mean, whichever they explain better: joint targets, or changes."""
    pose, change = measured[rows + 1], measured[rows + 1] - measured[rows]
    as_pose, as_change = (_any_order(command[rows], target) for target in (pose, change))
    if as_change > as_pose + DELTA_MARGIN:
        return change, "read as changes"
    return pose, "read as targets"


def _any_order(command: Float[np.ndarray, "M J"], target: Float[np.ndarray, "M J"]) -> float:
    """The best share of variance any one command column explains of each target, averaged over targets."""
    best = [max(fit_level(x[:, None], y[:, None]) for x in command.T) for y in target.T]
    return float(np.mean(best))


def _both(
    survey: Survey, group: str
) -> tuple[Float[np.ndarray, "N J"], Float[np.ndarray, "N J"], list[str]] | None:
    """Command and measurement of the joints both vectors hold, and their names."""
    if survey.state is None:
        return None
    action, state = survey.action, survey.state
    shared = [slot for slot in action.slots if slot in state.slots]
    names = {
        slot: name for slot, name in zip(action.slots, action.names, strict=True) if name.startswith(group)
    }
    shared = [slot for slot in shared if slot in names]
    if not shared:
        return None
    command = action.unified[:, [list(action.slots).index(slot) for slot in shared]].astype(np.float64)
    measured = state.unified[:, [list(state.slots).index(slot) for slot in shared]].astype(np.float64)
    return command, measured, [names[slot] for slot in shared]
