"""Checks of times and rates: stamps increasing, regular and at the declared rate; one rate for one robot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vla_adapt.episodes.doctor.doctor_finding import Finding, is_a_part, listed, share
from vla_adapt.episodes.doctor.doctor_survey import Survey
from vla_adapt.episodes.recorded_rate import RATE_TOLERANCE, rates_differ

UNITS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
FAR_OFF = 0.5
GAP, GAP_SHARE = 2.5, 0.01
LEAST_STEPS = 10  # of an episode, to know its rate


class RobotRate(NamedTuple):
    """The rate of one dataset, and whose it is."""

    dataset: str
    robot: str
    rate_hz: float


def check_robot_rate(survey: Survey) -> Iterator[Finding]:
    """Data recorded at another rate than its robot runs at."""
    recorded, robot = survey.read_hz, survey.embodiment
    how = "recorded" if survey.stride == 1 else "read"
    if rates_differ(recorded, robot.rate_hz):
        yield Finding(
            "robot_rate", "warning", survey.name,
            f"{how} at {recorded:g} Hz, {robot.name} is declared to run at {robot.rate_hz:g} Hz, where "
            f"the recorded motion takes {recorded / robot.rate_hz:.2g} times as long",
            "if the robot runs at the data's rate, declare that in an embodiment of its own; else read every "
            "n-th step (`stride` of the source) until the rates agree",
            {"recorded_hz": recorded, "robot_hz": robot.rate_hz},
        )  # fmt: skip


def check_pooled_rates(rates: Sequence[RobotRate]) -> Iterator[Finding]:
    """Datasets of one robot, so of one adapter and one set of statistics, recorded at different rates.

    Args:
        rates: of all datasets of the mixture.
    """
    for robot in dict.fromkeys(one.robot for one in rates):
        mine = sorted((one for one in rates if one.robot == robot), key=lambda one: one.rate_hz)
        if not rates_differ(mine[0].rate_hz, mine[-1].rate_hz):
            continue
        told = [f"{one.dataset} {one.rate_hz:g} Hz" for one in mine]
        ends = ", ".join((mine[0].dataset, mine[-1].dataset))
        yield Finding(
            "pooled_rates", "warning", ends,
            f"{len(mine)} datasets train one adapter, '{robot}', and were recorded at different rates: "
            f"{listed(told, 20)}; one step is not the same motion in all of them",
            "give those of another rate a `robot` name of their own in their entry, or read every n-th step "
            "of the faster ones (`stride` of the source)",
            {"robot": robot, "rates_hz": {one.dataset: one.rate_hz for one in mine}},
        )  # fmt: skip


def check_times(survey: Survey) -> Iterator[Finding]:
    """Time stamps that stand still or run backwards, gaps, and a rate other than the declared one."""
    timed = [
        recording for recording in survey.recordings if recording.time is not None and recording.length > 1
    ]
    if not timed:
        return
    gaps = [np.diff(recording.time) for recording in timed if recording.time is not None]
    steps = np.concatenate(gaps)
    backwards = [recording.episode_id for recording, gap in zip(timed, gaps, strict=True) if (gap <= 0).any()]
    if backwards:
        yield Finding(
            "time_not_increasing", "error", survey.name,
            "time stamps stand still or run backwards at "
            f"{share(int((steps <= 0).sum()), len(steps), 'steps')} in {len(backwards)} of {len(timed)} "
            f"episodes ({listed(backwards)})",
            "rows are out of order or recorded twice; sort or drop them",
            {"steps": int((steps <= 0).sum())},
        )  # fmt: skip
    forward = steps[steps > 0]
    if not len(forward):
        return
    everywhere = _median(forward)
    own = [_median(gap[gap > 0]) if (gap > 0).sum() >= LEAST_STEPS else everywhere for gap in gaps]
    usual = _median(np.array(own))
    yield from _rate(survey, usual, len(timed))
    yield from _odd_rates(survey, [recording.episode_id for recording in timed], own, usual)
    # Of each episode's own step: one at another rate has no gaps.
    ratios = [gap / step for gap, step in zip(gaps, own, strict=True)]
    late = np.concatenate(ratios)[steps > 0] > GAP
    if late.mean() > GAP_SHARE:
        late_in = [r.episode_id for r, ratio in zip(timed, ratios, strict=True) if (ratio > GAP).any()]
        yield Finding(
            "time_gaps", "warning", survey.name,
            f"{share(int(late.sum()), len(forward), 'steps')} take more than {GAP:g} times the median step, "
            f"the longest {np.concatenate(ratios).max():.3g} times, in {len(late_in)} episodes "
            f"({listed(late_in)})",
            "frames were dropped; actions across a gap do not do what they say",
            {"gaps": int(late.sum())},
        )  # fmt: skip


def _median(values: Float[np.ndarray, " M"]) -> float:
    """One of the values, never the mean of two: where half of the steps are longer, the median is none."""
    return float(np.quantile(values, 0.5, method="lower"))


def _odd_rates(survey: Survey, names: list[str], own: list[float], usual: float) -> Iterator[Finding]:
    """Episodes whose own median step is not that of the most."""
    odd = [number for number, step in enumerate(own) if rates_differ(step, usual)]
    if not is_a_part(odd, len(own)):
        return
    factors = [own[number] / usual for number in odd]
    worst = max(factors, key=lambda factor: abs(np.log(factor)))
    yield Finding(
        "control_rate", "error" if abs(np.log(worst)) > np.log(1 + FAR_OFF) else "warning", survey.name,
        f"{share(len(odd), len(own), 'episodes')} were recorded at another rate than the rest: their median "
        f"step is {min(factors):.3g} to {max(factors):.3g} times as long ({listed([names[i] for i in odd])})",
        "one step is not the same motion in all episodes; keep them apart as datasets with a rate_hz of "
        "their own, or drop them",
        {"episodes": [names[number] for number in odd[:50]], "factors": [round(f, 3) for f in factors[:50]]},
    )  # fmt: skip


def _rate(survey: Survey, step: float, episodes: int) -> Iterator[Finding]:
    """Compare the median step with the declared rate, in whichever unit of time comes nearest."""
    declared = survey.rate_hz
    unit = min(UNITS_PER_S, key=lambda unit: abs(np.log(UNITS_PER_S[unit] / step / declared)))
    measured = UNITS_PER_S[unit] / step
    off = abs(np.log(measured / declared))
    if off < np.log(1 + RATE_TOLERANCE):
        return
    yield Finding(
        "control_rate", "error" if off > np.log(1 + FAR_OFF) else "warning", survey.name,
        f"time stamps of {episodes} episodes have a median step of {step:.4g} {unit}: {measured:.3g} Hz, "
        f"declared are {declared:g} Hz",
        "correct rate_hz in the entry or the embodiment: at the wrong rate a robot replays the motion too "
        "fast or too slowly",
        {"measured_hz": measured, "declared_hz": declared},
    )  # fmt: skip
