"""Checks of the numbers themselves: NaN, dead or all but dead dimensions, outliers, declared limits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from vla_adapt.actions.normalize import HALF_RANGE_FLOOR
from vla_adapt.episodes.doctor.doctor_finding import Finding, listed, share
from vla_adapt.episodes.doctor.doctor_survey import Survey
from vla_adapt.episodes.doctor.doctor_track import ZERO_LENGTH, Track, columns_of, quaternion_lengths

# How many robust sigmas from the median a value must lie to be an outlier.
OUTLIER_SIGMAS = 25.0
NORMAL_Q98_SIGMAS = 4.65  # q99 - q01 of a normal distribution, in standard deviations
SPIKES = 100.0  # times q95 - q05 that q99 - q01 can be before it is made of spikes
LIMIT_SLACK = 0.01
LEAST_STEPS = 100  # for quantiles
LIMIT_ERROR_SHARE = 0.05
# A change of direction this near to a full turn, in one step, is arithmetic and not motion (rad).
WRAPPED = 2.8


def check_non_finite(survey: Survey) -> Iterator[Finding]:
    """NaN and infinities in actions and states."""
    for what, track in _tracks(survey):
        bad = ~np.isfinite(track.native).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            columns = np.flatnonzero(~np.isfinite(track.native).all(axis=0)).tolist()
            yield Finding(
                "non_finite", "error", survey.name,
                f"{what} holds NaN or infinity in {share(int(bad.sum()), len(bad), 'steps')} of "
                f"{_episodes(survey, bad)}, native columns {columns}; first at {survey.where(row)}",
                "repair or drop these episodes; one NaN in a batch ends a training run",
                {"steps": int(bad.sum()), "columns": columns},
            )  # fmt: skip


def check_quaternions(survey: Survey) -> Iterator[Finding]:
    """Quaternions of zero or far from unit length."""
    for what, track in _tracks(survey):
        for name, lengths in quaternion_lengths(track):
            zero, off = lengths < ZERO_LENGTH, np.abs(lengths - 1) > 0.01
            bad = zero if zero.any() else off
            if not bad.any():
                continue
            yield Finding(
                "bad_quaternion", "error" if zero.any() else "warning", survey.name,
                f"{what} '{name}': quaternion of length {'0' if zero.any() else f'{lengths[bad][0]:.3g}'} "
                f"in {share(int(bad.sum()), len(bad), 'steps')} of {_episodes(survey, bad)}; first at "
                f"{survey.where(int(np.argmax(bad)))}",
                "drop the steps whose pose is missing; check that these columns hold a quaternion at all",
                {"steps": int(bad.sum()), "component": name},
            )  # fmt: skip


def check_pose_known(survey: Survey) -> Iterator[Finding]:
    """A tool-frame action without the measured pose it needs."""
    tool = [part.name for part in survey.embodiment.action if part.frame == "tool"]
    if tool and survey.steps and survey.state is None:
        yield Finding(
            "no_pose", "error", survey.name,
            f"action '{tool[0]}' is declared in the tool frame, and the data holds no state to convert it by",
            "name the state in the entry, or choose an embodiment whose actions are in the base frame",
        )  # fmt: skip


def check_dead(survey: Survey) -> Iterator[Finding]:
    """Dimensions that never change."""
    for what, track in _tracks(survey):
        still = (_span(track.plain) == 0) & np.isfinite(track.plain).any(axis=0)
        dead = [i for i in np.flatnonzero(still) if i not in track.zero]
        if not len(dead) or survey.steps < 2:
            continue
        values = [f"{track.plain_names[i]} = {np.nanmedian(track.plain[:, i]):.4g}" for i in dead]
        yield Finding(
            "dead_dimension", "warning", survey.name,
            f"{what}: {len(dead)} of {track.plain.shape[1]} numbers never change in {survey.steps} steps: "
            f"{listed(values, 7)}",
            "check that the right columns are named in the entry; if the robot never uses them, leave it "
            "so: a dead dimension is normalized by a floor, not by its range",
            {"names": [track.plain_names[i] for i in dead]},
        )  # fmt: skip


def check_narrow(survey: Survey) -> Iterator[Finding]:
    """Dimensions that change, but whose q01 and q99 are as good as equal."""
    for what, track in _tracks(survey):
        values = track.plain
        narrow = np.flatnonzero(_narrow(track) & (_span(values) > 0))
        if not len(narrow) or survey.steps < LEAST_STEPS:
            continue
        low, high = _quantiles(values)
        far = np.nanmax(np.abs(values - _median(values)), axis=0)
        shown = [
            f"{track.plain_names[i]} (q01 {low[i]:.3g}, q99 {high[i]:.3g}, farthest {far[i]:.3g})"
            for i in narrow
        ]
        yield Finding(
            "narrow_quantiles", "warning", survey.name,
            f"q01 and q99 are all but equal for {len(narrow)} of {values.shape[1]} {what} numbers although "
            f"they change: {listed(shown, 7)}",
            "quantile normalization clips all that these do; check units, or give the rare motion more "
            "weight",
            {"names": [track.plain_names[i] for i in narrow]},
        )  # fmt: skip


def check_enough(survey: Survey) -> Iterator[Finding]:
    """Too few steps for the checks that look at how numbers are distributed."""
    if 0 < survey.steps < LEAST_STEPS:
        yield Finding(
            "few_steps", "note", survey.name,
            f"only {survey.steps} steps examined: too few to judge quantiles and outliers (from "
            f"{LEAST_STEPS} on), and how commands fit the measured motion",
            "examine more of it (--max-episodes 0), or look at it yourself (vla-adapt data inspect)",
            {"steps": survey.steps},
        )  # fmt: skip


def check_outliers(survey: Survey) -> Iterator[Finding]:
    """Values many robust sigmas from the median of their slot (declared limits have their own check)."""
    for what, track in _tracks(survey):
        if survey.steps < LEAST_STEPS:
            continue
        values, sigmas = _known(track.unified), _robust_sigma(track)
        distance = np.abs(values - _median(values)) / sigmas
        distance[:, [kind == "gripper" for kind in track.kinds]] = 0
        # Where it is nearly always the same number, any motion would be an outlier.
        distance[_by_slot(track, _beyond_limits(track) | _narrow(track))] = 0
        bad = np.nan_to_num(distance) > OUTLIER_SIGMAS
        if not bad.any():
            continue
        row, column = np.unravel_index(int(np.nanargmax(distance)), distance.shape)
        value, rows = float(values[row, column]), bad.any(axis=1)
        turns = track.kind == "action" and track.kinds[column] == "rotation" and abs(value) > WRAPPED
        yield Finding(
            "outliers", "warning", survey.name,
            f"{what}: {share(int(rows.sum()), len(rows), 'steps')} of {_episodes(survey, rows)} lie more "
            f"than {OUTLIER_SIGMAS:g} robust sigmas from the median; farthest {track.names[column]} = "
            f"{value:.4g} ({distance[row, column]:.0f} sigmas of {sigmas[column]:.2g}) at "
            f"{survey.where(int(row))}",
            "near a full turn: angles were subtracted without wrapping; subtract rotations by SO(3)" if turns
            else "look at these episodes (vla-adapt data inspect); drop them or repair the spikes",
            {"steps": int(rows.sum()), "farthest": value, "slot": track.names[column]},
        )  # fmt: skip


def check_limits(survey: Survey) -> Iterator[Finding]:
    """Actions and states beyond what the embodiment declares possible (grippers have their own check)."""
    for what, track in _tracks(survey):
        bad = _beyond_limits(track)
        if not bad.any():
            continue
        rows = bad.any(axis=1)
        column = int(np.argmax(bad.sum(axis=0)))
        part = next(
            part for part, columns in columns_of(track.components) if column in range(*columns.indices(999))
        )
        values = track.native[bad[:, column], column]
        worst = float(values[np.argmax(np.abs(values))])
        yield Finding(
            "beyond_limits", "error" if rows.mean() > LIMIT_ERROR_SHARE else "warning", survey.name,
            f"{what}: {share(int(rows.sum()), len(rows), 'steps')} of {_episodes(survey, rows)} lie outside "
            f"the limits that {survey.embodiment.name} declares; most in native column {column} "
            f"('{part.name}'), up to {worst:.4g}",
            "check units and embodiment: at inference such numbers are clipped to the limits",
            {"steps": int(rows.sum()), "column": column, "worst": worst},
        )  # fmt: skip


def _tracks(survey: Survey) -> Iterator[tuple[str, Track]]:
    if survey.steps:
        yield "action", survey.action
        if survey.state is not None:
            yield "state", survey.state


def _episodes(survey: Survey, rows: Bool[np.ndarray, " N"]) -> str:
    names = survey.episodes_with(rows)
    return f"{len(names)} of {len(survey.recordings)} episodes ({listed(names)})"


def _known(values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
    """As float64, infinities as NaN, and 0 where a whole column is NaN."""
    known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    known[:, np.isnan(known).all(axis=0)] = 0.0
    return known


def _span(values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, " F"]:
    return np.nanmax(_known(values), axis=0) - np.nanmin(_known(values), axis=0)


def _quantiles(values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "2 F"]:
    return np.nanquantile(_known(values), [0.01, 0.99], axis=0)


def _median(values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, " F"]:
    return np.nanmedian(_known(values), axis=0)


def _narrow(track: Track) -> Bool[np.ndarray, " D"]:
    """Native numbers whose q01 and q99 are as good as equal."""
    low, high = _quantiles(track.plain)
    return high - low < np.array([2 * HALF_RANGE_FLOOR[kind] for kind in track.plain_kinds])


def _robust_sigma(track: Track) -> Float[np.ndarray, " K"]:
    """Of each slot: by median deviation or by quantiles, whichever is larger, and never below the floor.

    Quantiles far beyond those that hold most numbers are outliers themselves, more than one in a hundred.
    """
    values = _known(track.unified)
    deviation = 1.4826 * _median(np.abs(values - _median(values)))
    low, high = _quantiles(values)
    floor = np.array([HALF_RANGE_FLOOR[kind] for kind in track.kinds])
    most = np.diff(np.nanquantile(values, [0.05, 0.95], axis=0), axis=0)[0]
    believed = np.where(most > 2 * floor, SPIKES * most, np.inf)
    return np.maximum.reduce([deviation, np.minimum(high - low, believed) / NORMAL_Q98_SIGMAS, floor])


def _by_slot(track: Track, flags: Bool[np.ndarray, "N D"]) -> Bool[np.ndarray, "N K"]:
    """Flags of native numbers as flags of slots; any of a rotation's numbers flags all of its slots."""
    parts = []
    for part, columns in columns_of(track.components):
        own, filled = flags[:, columns], len(part.slot_indices)
        parts.append(
            own if own.shape[1] == filled else np.repeat(own.any(axis=1, keepdims=True), filled, axis=1)
        )
    return np.concatenate(parts, axis=1)


def _beyond_limits(track: Track) -> Bool[np.ndarray, "N D"]:
    """Native numbers outside the declared limits."""
    outside = np.zeros(track.native.shape, bool)
    for part, columns in columns_of(track.components):
        if part.native_limits is None or part.gripper is not None:
            continue
        low, high = np.array(part.native_limits).T
        slack = LIMIT_SLACK * (high - low)
        values = track.native[:, columns]
        outside[:, columns] = (values < low - slack) | (values > high + slack)
    return outside
