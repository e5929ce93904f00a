"""Check for idle stretches: steps in which nothing is commanded and nothing moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from vla_adapt.actions.normalize import HALF_RANGE_FLOOR
from vla_adapt.episodes.doctor.doctor_finding import Finding, listed, share
from vla_adapt.episodes.doctor.doctor_survey import Survey
from vla_adapt.episodes.doctor.doctor_track import Track

# Motion below this share of a slot's usual half range counts as none.
STILL = 0.03
LEAST_RUN_S, LEAST_RUN_STEPS = 1.0, 5
LEAST_EPISODES, MOSTLY = 5, 0.9
WARN_SHARE, NOTE_SHARE = 0.2, 0.05
DELTAS = ("position", "rotation", "velocity")


def check_idle(survey: Survey) -> Iterator[Finding]:
    """Long runs of steps without motion, commanded or measured."""
    if not survey.steps:
        return
    shortest = max(LEAST_RUN_STEPS, round(LEAST_RUN_S * survey.rate_hz))
    idle = long_runs(still_steps(survey), survey.episode_of, shortest)
    part = float(idle.mean())
    if part < NOTE_SHARE:
        return
    places = (np.arange(survey.steps) - survey.starts[survey.episode_of]) / np.maximum(
        survey.lengths[survey.episode_of] - 1, 1
    )
    thirds = np.histogram(places[idle], bins=[0, 1 / 3, 2 / 3, 1.001])[0] / idle.sum()
    names = survey.episodes_with(idle)
    first = survey.where(int(np.argmax(idle)))
    yield Finding(
        "idle_frames", "warning" if part > WARN_SHARE else "note", survey.name,
        f"{share(int(idle.sum()), survey.steps, 'steps')} are idle in runs of at least {shortest} steps, in "
        f"{len(names)} of {len(survey.recordings)} episodes ({listed(names)}); {100 * thirds[0]:.0f} % of "
        f"them in the first third of an episode, {100 * thirds[1]:.0f} % in the middle, "
        f"{100 * thirds[2]:.0f} % in the last; the first begins at {first}",
        "a policy trained on many idle steps learns to stand still; trim them",
        {"idle_share": part, "thirds": thirds.round(4).tolist()},
    )  # fmt: skip


def check_dummy_first(survey: Survey) -> Iterator[Finding]:
    """First actions that are a stand-in: nothing is commanded in them, in nearly every episode."""
    long = survey.lengths > 2
    if long.sum() < LEAST_EPISODES:
        return
    still = ~_moves(survey, survey.action, DELTAS)
    moving = np.array([kind in DELTAS for kind in survey.action.kinds])
    still = still[:, moving].all(axis=1)
    first, second = still[survey.starts[long]], still[survey.starts[long] + 1]
    if moving.any() and first.mean() >= MOSTLY and first.mean() > second.mean() + 0.5:
        yield Finding(
            "dummy_first_action", "note", survey.name,
            f"the first action commands nothing in {share(int(first.sum()), int(long.sum()), 'episodes')}, "
            f"the second one in {int(second.sum())}",
            "a stand-in written by the recorder? then drop it with the transform drop_first_step",
            {"first": int(first.sum()), "second": int(second.sum())},
        )  # fmt: skip


def still_steps(survey: Survey) -> Bool[np.ndarray, " N"]:
    """Steps in which no slot is commanded to move and no measured slot has just moved."""
    still = ~_moves(survey, survey.action, DELTAS).any(axis=1)
    if survey.state is not None:
        still &= ~_moves(survey, survey.state, ()).any(axis=1)
    return still


def long_runs(flags: Bool[np.ndarray, " N"], episode_of: np.ndarray, shortest: int) -> Bool[np.ndarray, " N"]:
    """Those of the flagged steps that lie in a run of at least `shortest` within one episode."""
    new = np.ones(len(flags), bool)
    new[1:] = (flags[1:] != flags[:-1]) | (episode_of[1:] != episode_of[:-1])
    run = np.cumsum(new) - 1
    return flags & (np.bincount(run)[run] >= shortest)


def _moves(survey: Survey, track: Track, deltas: tuple[str, ...]) -> Bool[np.ndarray, "N K"]:
    """Where a slot moves: a delta that is not about 0, or a value other than at the step before."""
    values = np.nan_to_num(track.unified.astype(np.float64), nan=np.inf)
    change = np.zeros_like(values)
    with np.errstate(invalid="ignore"):
        change[1:] = values[1:] - values[:-1]
    change[survey.starts[survey.lengths > 0]] = 0
    is_delta = [kind in deltas for kind in track.kinds]
    change[:, is_delta] = values[:, is_delta]
    change = np.nan_to_num(change, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return np.abs(change) > _threshold(track, change)


def _threshold(track: Track, change: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " K"]:
    floor = np.array([HALF_RANGE_FLOOR[kind] for kind in track.kinds])
    finite = np.where(np.isfinite(change), change, 0.0)
    low, high = np.quantile(finite, [0.01, 0.99], axis=0)
    return np.maximum(floor, STILL * (high - low) / 2)
