"""Check for episodes that are there twice: within a dataset, or in two datasets or splits of a mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vla_adapt.episodes.doctor.doctor_finding import Finding, listed, share
from vla_adapt.episodes.doctor.doctor_survey import Survey

LEAST_STEPS = 5
NEAR = 1e-3  # of a slot's usual range: differences up to this are one and the same motion
_COARSE = 64  # steps kept of an episode for the near comparison


class Fingerprint(NamedTuple):
    """An episode by its actions: exact (a hash), and [T', K] in usual ranges to find near copies."""

    episode: str
    exact: str
    length: int
    coarse: np.ndarray


def fingerprints(survey: Survey) -> list[Fingerprint]:
    """Of every examined episode that has a few steps and in which something happens."""
    values = np.nan_to_num(survey.action.plain, posinf=0.0, neginf=0.0)
    if not len(values):
        return []
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    scaled = values / np.maximum(high - low, 1e-3)
    found: list[Fingerprint] = []
    for recording, start in zip(survey.recordings, survey.starts, strict=True):
        rows = slice(int(start), int(start) + recording.length)
        native = np.ascontiguousarray(survey.action.native[rows])
        if recording.length < LEAST_STEPS or not native.std(axis=0).any():
            continue
        kept = np.linspace(0, recording.length - 1, min(recording.length, _COARSE)).astype(int)
        exact = hashlib.sha256(native.tobytes()).hexdigest()
        found.append(Fingerprint(recording.episode_id, exact, recording.length, scaled[rows][kept]))
    return found


def check_duplicates(survey: Survey) -> Iterator[Finding]:
    """Episodes of one dataset with the same, or nearly the same, actions."""
    prints = fingerprints(survey)
    groups: dict[str, list[str]] = {}
    for found in prints:
        groups.setdefault(found.exact, []).append(found.episode)
    same = [group for group in groups.values() if len(group) > 1]
    extra = sum(len(group) - 1 for group in same)
    if same:
        yield Finding(
            "duplicate_episodes", "warning", survey.name,
            f"{share(extra, len(prints), 'episodes')} repeat the actions of another to the bit: "
            f"{listed([' = '.join(group[:3]) for group in same])}",
            "keep one of each: copies weigh double, and leak into held-out episodes",
            {"groups": [group[:20] for group in same[:50]]},
        )  # fmt: skip
    near = near_copies(prints)
    if near:
        yield Finding(
            "near_duplicate_episodes", "warning", survey.name,
            f"{len(near)} pairs of episodes have actions that differ by less than {100 * NEAR:g} % of their "
            f"range everywhere: {listed([f'{a} ~ {b}' for a, b in near])}",
            "the same recording, rounded or converted twice? keep one of each",
            {"pairs": [list(pair) for pair in near[:50]]},
        )  # fmt: skip


def near_copies(prints: Sequence[Fingerprint]) -> list[tuple[str, str]]:
    """Pairs of equal length whose coarse actions are nearly equal, but not the very same."""
    by_length: dict[int, list[Fingerprint]] = {}
    for found in prints:
        by_length.setdefault(found.length, []).append(found)
    pairs: list[tuple[str, str]] = []
    for group in by_length.values():
        # Near copies have near means: compare only neighbors in the order of their means.
        group.sort(key=lambda found: float(np.mean(found.coarse)))
        means = [float(np.mean(found.coarse)) for found in group]
        for i, first in enumerate(group):
            for j in range(i + 1, len(group)):
                if means[j] - means[i] > NEAR:
                    break
                second = group[j]
                if first.exact != second.exact and np.abs(first.coarse - second.coarse).max() < NEAR:
                    pairs.append((first.episode, second.episode))
    return pairs


def check_shared(named: Sequence[tuple[str, Sequence[Fingerprint]]]) -> Iterator[Finding]:
    """Episodes that two datasets (or two splits of one) have in common."""
    for i, (name, prints) in enumerate(named):
        own = {found.exact: found.episode for found in prints}
        for other, others in named[i + 1 :]:
            common = [(own[found.exact], found.episode) for found in others if found.exact in own]
            if common:
                yield Finding(
                    "shared_episodes", "warning", other,
                    f"{share(len(common), len(others), 'episodes')} have the very actions of an episode of "
                    f"{name}: {listed([f'{b} = {a}' for a, b in common])}",
                    "held-out episodes that were trained on measure memory; in a mixture, copies weigh "
                    "double",
                    {"pairs": [list(pair) for pair in common[:50]], "with": name},
                )  # fmt: skip
