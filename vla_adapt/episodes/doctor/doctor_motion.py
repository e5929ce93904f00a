"""End-effector deltas against measured poses: do they integrate, in which frame, how delayed?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import decode_rotation
from vla_adapt.embodiment import Component
from vla_adapt.episodes.doctor.doctor_finding import Finding
from vla_adapt.episodes.doctor.doctor_fit import (
    Fit,
    angle_deg,
    fit_level,
    fit_scaled,
    fit_turned,
    turn_in_words,
)
from vla_adapt.episodes.doctor.doctor_survey import Survey

GROUPS = tuple(f"{side}_ee_{kind}_delta" for side in ("right", "left") for kind in ("position", "rotation"))
LAGS = tuple(range(-2, 4))
LEAST_ROWS, MOST_ROWS = 60, 50_000
EXPLAINED = 0.25  # least share of the motion a hypothesis must explain to be believed
BETTER, SLIGHTLY = 0.15, 0.03  # by how much more it must explain than the declared convention
ABSOLUTE = 0.8  # share of the pose's variance explained, from which an "action" is a pose
TURNED_DEG = 15.0
UNEXPLAINED = 0.1
ODD_SCALE = (1 / 15, 3.0)
WRONG_SCALE = (1 / 50, 20.0)
SPIKE = 5.0  # times the length that 95 % of the steps stay below
LEAST_MOTION = {"position": 1e-3, "rotation": 5e-3}  # root mean square per step, below which nothing moves
UNIT = {"position": "m", "rotation": "rad"}


class Measured(NamedTuple):
    """Motion of one hand over the rows of a survey.

    Attributes:
        what: "right_ee_position_delta".
        component: the action's.
        command: [N, 3] SI, in the frame the numbers are stored in, whichever that is.
        pose: [N, 3] absolute position (m), or orientation as axis-angle.
        turns: [N] measured orientations in the base frame, or None.
    """

    what: str
    component: Component
    command: Float[np.ndarray, "N 3"]
    pose: Float[np.ndarray, "N 3"]
    turns: Rotation | None

    @property
    def kind(self) -> str:
        return self.component.group.kind

    @property
    def frames(self) -> tuple[str, ...]:
        """In which the motion is known."""
        return ("base", "tool") if self.turns is not None else ("base",)

    def motion(self, rows: np.ndarray, lag: int, frame: str) -> Float[np.ndarray, "M 3"]:
        """What happened from step t + lag to the next, for rows t, seen in `base` or `tool`."""
        before, after = rows + lag, rows + lag + 1
        if self.kind == "position":
            moved = self.pose[after] - self.pose[before]
            if frame == "base":
                return moved
            assert self.turns is not None
            return self.turns[before].apply(moved, inverse=True)
        assert self.turns is not None
        first, second = self.turns[before], self.turns[after]
        return (second * first.inv() if frame == "base" else first.inv() * second).as_rotvec()


def usable_rows(survey: Survey, measured: Measured) -> Int64[np.ndarray, " M"]:
    """Steps with a command, poses all around, and no spike; none where there are too few, or no motion."""
    none = np.zeros(0, np.int64)
    rows = survey.together(*(lag + 1 for lag in LAGS), *LAGS)
    usable = np.isfinite(measured.command).all(axis=1) & np.isfinite(measured.pose).all(axis=1)
    rows = rows[np.all([usable[rows + offset] for offset in (*LAGS, LAGS[-1] + 1)], axis=0)]
    declared = measured.component.frame
    if len(rows) < LEAST_ROWS or declared not in measured.frames:
        return none
    motion = measured.motion(rows, 0, declared)
    ordinary = _ordinary(measured.command[rows], motion)
    least = LEAST_MOTION[measured.kind] * np.sqrt(5 / max(5.0, survey.rate_hz))
    if _rms(motion[ordinary]) < least or _rms(measured.command[rows[ordinary]]) < 1e-12:
        return none
    return rows[ordinary]


def judge(survey: Survey, measured: Measured) -> Iterator[Finding]:
    """What is wrong with the commands of one hand, over all steps together."""
    rows = usable_rows(survey, measured)
    if not len(rows):
        return
    rows, declared = rows[:: len(rows) // MOST_ROWS + 1], measured.component.frame
    command = measured.command[rows]
    motions = {(lag, frame): measured.motion(rows, lag, frame) for lag in LAGS for frame in measured.frames}
    plain = {key: fit_scaled(command, motion) for key, motion in motions.items()}
    turned = {lag: fit_turned(command, motions[lag, declared]) for lag in LAGS}
    level = max(fit_level(command, measured.pose[rows + offset]) for offset in (0, 1))
    yield from _verdict(survey, measured, plain, turned, level)


def _verdict(
    survey: Survey,
    measured: Measured,
    plain: dict[tuple[int, str], Fit],
    turned: dict[int, Fit],
    level: float,
) -> Iterator[Finding]:
    """The one explanation that fits best, if it is not the declared one."""
    declared = measured.component.frame
    other = "tool" if declared == "base" else "base"
    lag = max(LAGS, key=lambda lag: plain[lag, declared].explained)
    best = plain[lag, declared]
    turned_lag = max(LAGS, key=lambda lag: turned[lag].explained)
    turn = turned[turned_lag]
    elsewhere = max(
        (plain[key] for key in plain if key[1] == other),
        key=lambda fit: fit.explained,
        default=Fit(0, np.eye(3), 0),
    )
    numbers = {
        "explained": best.explained, "scale": best.scale, "lag": lag, "explained_turned": turn.explained,
        "explained_other_frame": elsewhere.explained, "explained_as_pose": level,
    }  # fmt: skip
    says = f"{measured.what}: as declared ({declared} frame) the commands explain "
    says += f"{_percent(best.explained)} of the measured motion"
    if level > ABSOLUTE and level > best.explained + BETTER:
        yield Finding(
            "absolute_actions", "error", survey.name,
            f"{says}, but read as target poses they explain {_percent(level)} of where the hand is",
            "these actions are absolute poses, not deltas; convert them, e.g. by the transform "
            "relabel_from_next_state",
            numbers,
        )  # fmt: skip
    elif elsewhere.explained > EXPLAINED and clearly_better(elsewhere.explained, best.explained) and (
        elsewhere.explained > turn.explained - 0.05
    ):  # fmt: skip
        yield Finding(
            "frame_mismatch", "error", survey.name,
            f"{says}, read in the {other} frame {_percent(elsewhere.explained)} of it",
            f"declare `frame: {other}` for '{measured.component.name}' in the embodiment",
            numbers,
        )  # fmt: skip
    elif (
        turn.explained > EXPLAINED
        and clearly_better(turn.explained, best.explained)
        and angle_deg(turn.turn) > TURNED_DEG
    ):
        yield Finding(
            "axes_mismatch", "error", survey.name,
            f"{says}; they look like {turn.scale:.2f} x the motion {turn_in_words(turn.turn)} "
            f"({_percent(turn.explained)})",
            "actions and states are given in different axes; turn one of them by a transform, or correct "
            "the order of the columns in the entry",
            numbers | {"turn": turn.turn.round(3).tolist()},
        )  # fmt: skip
    elif best.explained < UNEXPLAINED:
        yield Finding(
            "not_integrable", "warning", survey.name,
            f"{says} (at any delay from {LAGS[0]} to {LAGS[-1]} steps), "
            f"{_percent(max(0.0, turn.explained))} of it however turned, {_percent(max(0.0, level))} as "
            "poses",
            "check that action and state columns are those of the same hand, and that rows are in order",
            numbers,
        )  # fmt: skip
    else:
        yield from _scale_and_delay(survey, measured, plain, lag, numbers)


def _scale_and_delay(
    survey: Survey, measured: Measured, plain: dict[tuple[int, str], Fit], lag: int, numbers: dict[str, float]
) -> Iterator[Finding]:
    declared = measured.component.frame
    best, now = plain[lag, declared], plain[0, declared]
    rate = survey.rate_hz
    if not ODD_SCALE[0] < best.scale < ODD_SCALE[1]:
        wrong = not WRONG_SCALE[0] < best.scale < WRONG_SCALE[1]
        yield Finding(
            "action_scale", "error" if wrong else "warning", survey.name,
            f"{measured.what}: the hand moves {best.scale:.3g} {UNIT[measured.kind]} for each commanded "
            f"{UNIT[measured.kind]} (the commands explain {_percent(best.explained)} of the motion)",
            f"check `unit` and `scale` of '{measured.component.name}' in the embodiment: m and cm, rad and "
            "deg, deltas and velocities, normalized numbers",
            numbers,
        )  # fmt: skip
    gain = best.explained - now.explained
    if lag < 0 and gain > UNEXPLAINED:
        yield Finding(
            "action_lag", "warning", survey.name,
            f"{measured.what}: the action of step t fits the motion {-lag} step(s) earlier "
            f"({_percent(best.explained)} of it explained, {_percent(now.explained)} for the motion from t "
            "on)",
            "the action column lags behind the observations: shift it, or the policy learns to repeat the "
            "past",
            numbers,
        )  # fmt: skip
    elif lag >= 2 and gain > UNEXPLAINED:
        slow = lag / rate > 0.5
        yield Finding(
            "action_lag", "warning" if slow else "note", survey.name,
            f"{measured.what}: the hand follows {lag} steps ({1000 * lag / rate:.0f} ms) after the command "
            f"({_percent(best.explained)} of the motion explained, {_percent(now.explained)} without delay)",
            "if the robot is not that slow, action and observation columns are shifted against each other",
            numbers,
        )  # fmt: skip


def measured_hand(survey: Survey, group: str) -> Measured | None:
    """Command and pose of one hand (one of `GROUPS`), or None where one of them is not whole."""
    assert survey.state is not None
    side = group.partition("_")[0]
    found, pose = survey.action.part(group), survey.state.group(group)
    if found is None or pose is None or len(found[0].slot_indices) != 3:
        return None
    component, native = found
    command = native.astype(np.float64) * np.array(component.native_scale)
    good = np.isfinite(command).all(axis=1)
    if component.rotation is not None:
        command = np.where(good[:, None], command, 0.0)
        if component.rotation.startswith("quaternion"):
            good &= np.linalg.norm(command, axis=1) > 1e-6
            command[~good] = [1.0, 0, 0, 0]
        command = decode_rotation(command, component.rotation).as_rotvec()
    command[~good] = np.nan
    turns = _turns(survey, side)
    if component.group.kind == "rotation" and turns is None:
        return None
    return Measured(group, component, command, pose.astype(np.float64), turns)


def _turns(survey: Survey, side: str) -> Rotation | None:
    """Measured orientations of a hand; rows without one are the identity (and left out by their NaN pose)."""
    assert survey.state is not None
    slots = f"{side}_ee_rotation_delta"
    found = survey.state.part(slots)
    pose = survey.state.group(slots)
    if found is None or pose is None or found[0].rotation is None:
        return None
    component, native = found
    encoding = component.rotation
    assert encoding is not None
    numbers = np.where(np.isfinite(pose).all(axis=1)[:, None], native.astype(np.float64), 1.0)
    return decode_rotation(numbers * np.array(component.native_scale), encoding)


def clearly_better(explained: float | np.ndarray, than: float | np.ndarray) -> Any:
    """By a margin; or by less, when it leaves next to nothing unexplained. Of arrays each by itself."""
    gain = explained - than
    return (gain > BETTER) | ((gain > SLIGHTLY) & (1 - explained < (1 - than) / 3))


def _ordinary(*vectors: Float[np.ndarray, "M 3"]) -> np.ndarray:
    """Rows that are not far longer than nearly all: one spike has more energy than an hour of motion."""
    sizes = [np.linalg.norm(vector, axis=1) for vector in vectors]
    return np.all([size <= SPIKE * np.quantile(size, 0.95) for size in sizes], axis=0)


def _rms(values: Float[np.ndarray, "M F"]) -> float:
    return float(np.sqrt((values**2).sum(axis=1).mean()))


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"
