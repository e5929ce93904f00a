"""Check of end-effector deltas, in all episodes or in some that follow another convention than the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int64

from vla_adapt.episodes.doctor.doctor_finding import Finding, is_a_part, listed, part_severity, share
from vla_adapt.episodes.doctor.doctor_fit import FLAT_DIRECTION
from vla_adapt.episodes.doctor.doctor_motion import (
    EXPLAINED,
    GROUPS,
    LAGS,
    Measured,
    clearly_better,
    judge,
    measured_hand,
    usable_rows,
)
from vla_adapt.episodes.doctor.doctor_survey import Survey

LEAST_ROWS = 15  # of an episode, to judge it
# Code -> which measured share explains the motion then.
CONVENTIONS = {
    "frame_mismatch": "explained_other_frame", "axes_mismatch": "explained_turned",
    "absolute_actions": "explained_as_pose",
}  # fmt: skip
LEAVES = 0.5  # at most this share of what the declared convention leaves unexplained


def check_deltas(survey: Survey) -> Iterator[Finding]:
    """End-effector deltas that do not do what the embodiment says they do, in some episodes or in all."""
    if survey.state is None:
        return
    for group in GROUPS:
        measured = measured_hand(survey, group)
        if measured is not None:
            yield from _in_some(survey, measured) or judge(survey, measured)


def _in_some(survey: Survey, measured: Measured) -> list[Finding]:
    """Some episodes are suspected one by one, and found guilty together.

    Alone an episode is too short to prove anything: by chance another frame or turn may fit it better. By
    chance it will not be the same one in all of them, nor explain them together.
    """
    suspects, judged = _suspects(survey, measured)
    odd, of = np.flatnonzero(suspects).tolist(), int(judged.sum())
    if not is_a_part(odd, of) or len(odd) == of:
        return []
    part = survey.only(odd)
    again = measured_hand(part, measured.what)
    found = [] if again is None else list(judge(part, again))
    return [
        _of_some(survey, finding, odd, of)
        for finding in found
        if finding.code in CONVENTIONS and _decides(finding)
    ]


def _decides(finding: Finding) -> bool:
    """Whether the other convention explains so much more that it is not the choice of suspects that does."""
    left = 1 - finding.numbers[CONVENTIONS[finding.code]]
    return left < LEAVES * (1 - finding.numbers["explained"])


def _of_some(survey: Survey, finding: Finding, odd: list[int], judged: int) -> Finding:
    names = survey.ids(odd)
    return dataclasses.replace(
        finding,
        severity=part_severity(odd, judged),
        evidence=f"in {share(len(odd), judged, 'episodes')} ({listed(names)}), unlike the rest: "
        f"{finding.evidence}",
        advice=f"for these episodes: {finding.advice}; keep them apart as a dataset of their own",
        numbers={**finding.numbers, "episodes": names[:50], "judged": judged},
    )


def _suspects(survey: Survey, measured: Measured) -> tuple[Bool[np.ndarray, " E"], Bool[np.ndarray, " E"]]:
    """Episodes that another frame or turn explains clearly better than what is declared; those judged."""
    rows, count = usable_rows(survey, measured), len(survey.lengths)
    episode = survey.episode_of[rows]
    judged = np.bincount(episode, minlength=count) >= LEAST_ROWS
    if not judged.any():
        return judged, judged
    command, declared = measured.command[rows], measured.component.frame
    plain, other = np.zeros(count), np.zeros(count)
    for lag in LAGS:
        for frame in measured.frames:
            products = _products(command, measured.motion(rows, lag, frame), episode, count)
            along, turned = _explained(*products)
            if frame == declared:
                plain, other = np.maximum(plain, along), np.maximum(other, turned)
            else:
                other = np.maximum(other, along)
    return judged & (other > EXPLAINED) & clearly_better(other, plain), judged


def _products(
    command: Float[np.ndarray, "M 3"],
    motion: Float[np.ndarray, "M 3"],
    episode: Int64[np.ndarray, " M"],
    count: int,
) -> tuple[Float[np.ndarray, "E 3 3"], Float[np.ndarray, " E"]]:
    """Of each episode: motion^T command, and |motion|^2 |command|^2 (never 0)."""

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(episode, values, count)

    cross = [[total(motion[:, i] * command[:, j]) for j in range(3)] for i in range(3)]
    energy = total((motion**2).sum(axis=1)) * total((command**2).sum(axis=1))
    return np.array(cross).transpose(2, 0, 1), np.maximum(energy, 1e-30)


def _explained(
    cross: Float[np.ndarray, "E 3 3"], energy: Float[np.ndarray, " E"]
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Share of the motion that the command explains at its best scale: as it is, and however turned.

    In closed form what `doctor_fit.fit_scaled` and `fit_turned` compute.
    """
    along = np.maximum(np.trace(cross, axis1=1, axis2=2), 0)
    strength = np.linalg.svd(cross, compute_uv=False)
    # Mirroring a direction in which nothing happens is no mirroring.
    flat = (np.linalg.det(cross) < 0) & (strength[:, 2] < FLAT_DIRECTION * strength[:, 0])
    turned = strength.sum(axis=1) - np.where(flat, 2 * strength[:, 2], 0)
    return along**2 / energy, turned**2 / energy
