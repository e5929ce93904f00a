"""Checks of the grippers: does 1 mean open, and is the declared span the one the numbers use?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from vla_adapt.embodiment import GripperRange
from vla_adapt.episodes.doctor.doctor_finding import (
    Finding,
    Severity,
    is_a_part,
    listed,
    part_severity,
    share,
)
from vla_adapt.episodes.doctor.doctor_survey import Survey

OUTSIDE = 0.1  # of the declared span: how far beyond open or closed a number may lie
NARROW = 0.2  # of the declared span: a gripper that moves, but within less, is in another unit
LEAST_MOTION = 0.01
CLIPPED = 1.05  # spans beyond closed or open from which clipping is no longer what was meant
OPPOSITE = -0.4  # correlation of command and measurement below which the sign is wrong
CHANCE = 4.0  # in so many standard errors: of few steps chance makes as much
# In one episode: correlation that shows which way round it is, at least so much clearer than the other way,
# over so many steps, of openings that vary by so much (standard deviation).
CLEAR, CLEARER, LEAST_ROWS, LEAST_SPREAD = 0.6, 0.2, 15, 0.1
MOST_LAGS = 16
# Hands that start closed: most of so many episodes, or all of fewer; of still fewer it is only noted.
LEAST_EPISODES, FEW_EPISODES = 8, 4
MOSTLY = 0.8


def check_gripper_scale(survey: Survey) -> Iterator[Finding]:
    """Gripper numbers that do not fit between the declared closed and open."""
    for what, track in (("action", survey.action), ("state", survey.state)):
        for slot, part, opening in track.openings() if track is not None else ():
            yield from _scale_findings(survey, f"{what} {slot}", part.gripper, opening[np.isfinite(opening)])
    for gripper in survey.grippers:
        opening = gripper.opening[np.isfinite(gripper.opening)]
        yield from _scale_findings(survey, gripper.what, gripper.declared, opening, clipped=True)


def check_gripper_sign(survey: Survey) -> Iterator[Finding]:
    """Commands that run against the measurement: one of the two conventions is the wrong way round."""
    if survey.state is None:
        return
    measured = {slot: opening for slot, _, opening in survey.state.openings()}
    for slot, part, command in survey.action.openings():
        if slot not in measured or part.gripper is None:
            continue
        ways = ways_round(survey, command, measured[slot])
        against, along = np.flatnonzero(ways < 0).tolist(), np.flatnonzero(ways > 0).tolist()
        judged = len(against) + len(along)
        level, change = _agreement(survey, command, measured[slot])
        if is_a_part(against, judged) and along:
            yield _some_against(survey, slot, against, judged)
        elif level < min(OPPOSITE, -CHANCE / np.sqrt(max(survey.steps, 1))) and change < 0:
            yield Finding(
                "gripper_sign", "error", survey.name,
                f"{slot}: commanded and measured opening run against each other: correlation {level:.2f} "
                f"with the opening that follows, {change:.2f} with its change; declared open = "
                f"{part.gripper.open:g}, closed = {part.gripper.closed:g} for the action",
                f"{_starts(survey, command)}; swap `gripper: {{open, closed}}` of the action or of the "
                "state in the embodiment, or invert the column by a transform",
                {"level_correlation": level, "change_correlation": change},
            )  # fmt: skip


def _some_against(survey: Survey, slot: str, against: list[int], judged: int) -> Finding:
    names = survey.ids(against)
    return Finding(
        "gripper_sign", part_severity(against, judged), survey.name,
        f"{slot}: in {share(len(against), judged, 'episodes')} in which the gripper moves, commanded and "
        f"measured opening run against each other, in {judged - len(against)} along: {listed(names)}",
        "two recordings with opposite conventions under one name? keep them apart as datasets with "
        "`gripper: {open, closed}` of their own, or drop these episodes",
        {"episodes": names[:50], "judged": judged},
    )  # fmt: skip


def check_gripper_start(survey: Survey) -> Iterator[Finding]:
    """Most tasks start with an open hand; where nearly all start closed, both conventions may be swapped."""
    if any([*check_gripper_sign(survey), *check_gripper_scale(survey)]):
        return  # says the same with better evidence
    for slot, part, command in survey.action.openings():
        first, moves = _first_openings(survey, command)
        closed = int((first[moves] < 0.5).sum())
        judged = int(moves.sum())
        least = MOSTLY * judged if judged >= LEAST_EPISODES else judged
        if part.gripper is None or not judged or closed < least:
            continue
        few = judged < FEW_EPISODES
        yield Finding(
            "gripper_starts_closed", "note" if few else "warning", survey.name,
            f"{slot}: {share(closed, int(moves.sum()), 'episodes in which the gripper moves')} start "
            f"closed, where hands usually start open{' (too few to tell)' if few else ''}; declared open = "
            f"{part.gripper.open:g}, closed = {part.gripper.closed:g}",
            "look at an episode (vla-adapt data inspect): if the hand is open at the start, swap open and "
            "closed in the embodiment; if the tasks begin with something in the hand, all is well",
            {"closed_at_start": closed, "episodes": int(moves.sum())},
        )  # fmt: skip


def _scale_findings(
    survey: Survey,
    what: str,
    gripper: GripperRange | None,
    opening: Float[np.ndarray, " N"],
    clipped: bool = False,
) -> Iterator[Finding]:
    """Judge one gripper's openings; `clipped`: what lies outside is clipped when read."""
    if gripper is None or not len(opening):
        return
    span = gripper.open - gripper.closed
    outside = int(((opening < -OUTSIDE) | (opening > 1 + OUTSIDE)).sum())
    low, high = (float(value) for value in np.quantile(opening, [0.005, 0.995]))
    native = sorted((low * span + gripper.closed, high * span + gripper.closed))
    declared = f"declared open = {gripper.open:g}, closed = {gripper.closed:g}"
    numbers = {"native_low": native[0], "native_high": native[1], "outside": outside}
    severity: Severity = "error"
    if outside > 0.01 * len(opening):
        # -1 and 1 declared as 0 and 1 (or the like) still mean closed and open once they are clipped.
        harmless = clipped and -CLIPPED <= low < 0.5 < high <= 1 + CLIPPED
        severity = "note" if harmless else "error"
        evidence = f"{share(outside, len(opening), 'steps')} lie outside the declared span"
    elif LEAST_MOTION < high - low < NARROW and len(opening) >= LEAST_ROWS:
        severity = "warning" if what.startswith("state") else "error"
        evidence = f"the gripper moves, but within {100 * (high - low):.2g} % of the declared span"
    else:
        return
    yield Finding(
        "gripper_scale", severity, survey.name,
        f"{what}: {evidence}; native numbers run from {native[0]:.4g} to {native[1]:.4g}, {declared}",
        "declare the numbers the data uses, e.g. gripper: "
        f"{{open: {native[1]:.4g}, closed: {native[0]:.4g}}} (or the other way round)",
        numbers,
    )  # fmt: skip


def _agreement(
    survey: Survey, command: Float[np.ndarray, " N"], measured: Float[np.ndarray, " N"]
) -> tuple[float, float]:
    """Correlation of the command with the opening within a second after (where strongest), and its change."""
    best = change = 0.0
    for lag in range(1, max(2, round(survey.rate_hz)) + 1):
        rows = survey.together(lag)
        level = correlation(command[rows], measured[rows + lag])
        if abs(level) > abs(best):
            best, change = level, correlation(command[rows], measured[rows + lag] - measured[rows])
    return best, change


def ways_round(
    survey: Survey, command: Float[np.ndarray, " N"], measured: Float[np.ndarray, " N"]
) -> Int[np.ndarray, " E"]:
    """Of each episode alone: 1 where the opening follows the command, -1 where it runs against it, else 0.

    The opening may follow within two seconds; the more of the episode a delay leaves, the more it counts.
    """
    highest, lowest = np.full(len(survey.lengths), -np.inf), np.full(len(survey.lengths), np.inf)
    slowest = max(2, round(2 * survey.rate_hz))
    for lag in np.unique(np.linspace(0, slowest, MOST_LAGS).round().astype(int)).tolist():
        rows = survey.together(lag)
        found = _correlations(
            command[rows], measured[rows + lag], survey.episode_of[rows], len(survey.lengths)
        )
        found *= np.maximum(survey.lengths - lag, 0) / np.maximum(survey.lengths, 1)
        highest, lowest = np.fmax(highest, found), np.fmin(lowest, found)
    along = (highest > CLEAR) & (highest > -lowest + CLEARER)
    against = (lowest < -CLEAR) & (-lowest > highest + CLEARER)
    return along.astype(int) - against.astype(int)


def _correlations(
    x: Float[np.ndarray, " M"],
    y: Float[np.ndarray, " M"],
    episode: Int[np.ndarray, " M"],
    episodes: int,
) -> Float[np.ndarray, " E"]:
    """Pearson's correlation within each episode; NaN where it is too short or moves too little."""
    good = np.isfinite(x) & np.isfinite(y)
    x, y, episode = x[good].astype(np.float64), y[good].astype(np.float64), episode[good]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(episode, values, episodes) / np.maximum(count, 1)

    count = np.bincount(episode, minlength=episodes)
    x, y = x - mean(x)[episode], y - mean(y)[episode]
    spread = np.sqrt(mean(x * x)), np.sqrt(mean(y * y))
    enough = (count >= LEAST_ROWS) & (spread[0] > LEAST_SPREAD) & (spread[1] > LEAST_SPREAD)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(enough, mean(x * y) / (spread[0] * spread[1]), np.nan)


def correlation(x: Float[np.ndarray, " M"], y: Float[np.ndarray, " M"]) -> float:
    """Pearson's correlation over the rows where both are finite; 0 when either does not change."""
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) < 20 or x.std() < 1e-9 or y.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _first_openings(
    survey: Survey, command: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " E"], np.ndarray]:
    """Opening commanded at the start of each episode, and whether the gripper moves in it."""
    first, moves = np.zeros(len(survey.lengths)), np.zeros(len(survey.lengths), bool)
    for i, (start, length) in enumerate(zip(survey.starts, survey.lengths, strict=True)):
        episode = command[start : start + length]
        episode = episode[np.isfinite(episode)]
        if len(episode):
            # The very first command may be a dummy.
            first[i] = episode[min(1, len(episode) - 1)]
            moves[i] = episode.max() - episode.min() > 0.5
    return first, moves


def _starts(survey: Survey, command: Float[np.ndarray, " N"]) -> str:
    first, moves = _first_openings(survey, command)
    if not moves.any():
        return "no episode opens or closes clearly"
    closed = int((first[moves] < 0.5).sum())
    return (
        f"as declared, {share(closed, int(moves.sum()), 'episodes')} start closed (hands usually start open)"
    )
