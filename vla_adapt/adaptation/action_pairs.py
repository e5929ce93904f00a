"""Pairs of actions of two robots: steps of paired episodes, or of aligned ones of one instruction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import BaseModel, ConfigDict

from vla_adapt.actions.normalize import Normalizer
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import unify_motion

_COUNT_WEIGHT = 1e-6  # of the number of steps against their distance: of equal ways DTW takes the shortest


class PairingConfig(BaseModel):
    """Which episodes belong together, and which of their steps.

    Attributes:
        episodes: `paired`: the n-th of one robot with the n-th of the other, recorded step by step together
            (as many steps, one instruction); `instruction`: the k-th of an instruction with the k-th of the
            same instruction, in the datasets' order.
        alignment: of instruction-aligned episodes. `time`: steps at the same share of the episode, the source
            interpolated linearly. `dtw`: dynamic time warping (Sakoe & Chiba, 1978) on the normalized slots
            that both robots have, each target step with the mean of its source steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    episodes: Literal["paired", "instruction"] = "instruction"
    alignment: Literal["time", "dtw"] = "time"


@dataclass(frozen=True)
class Track:
    """One episode's normalized unified actions [T, 32] in [-1, 1], zero where `mask` [32] is False."""

    where: str
    instruction: str
    values: Float[np.ndarray, "T S"]
    mask: Bool[np.ndarray, " S"]


@dataclass(frozen=True)
class ActionPairs:
    """N steps of two robots; `episode` [N] numbers the pair of episodes that each is from."""

    source: Float[np.ndarray, "N S"]
    source_mask: Bool[np.ndarray, "N S"]
    target: Float[np.ndarray, "N S"]
    target_mask: Bool[np.ndarray, "N S"]
    episode: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def episodes(self) -> int:
        """Pairs of episodes."""
        return int(self.episode.max()) + 1

    def select(self, rows: Shaped[np.ndarray, " M"]) -> ActionPairs:
        """Some rows, by index or bool mask."""
        return ActionPairs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def pair_actions(
    source: Sequence[EpisodeDataset],
    target: Sequence[EpisodeDataset],
    source_normalizer: Normalizer,
    target_normalizer: Normalizer,
    config: PairingConfig | None = None,
) -> ActionPairs:
    """Read both robots' episodes (no images) and pair their steps, in normalized space.

    Raises:
        ValueError: episodes said to be paired differ in number, steps or instruction; no instruction is
            common; DTW of robots that share no slot.
    """
    config = config or PairingConfig()
    ours, theirs = _tracks(source, source_normalizer), _tracks(target, target_normalizer)
    if config.episodes == "paired":
        matched = _paired(ours, theirs)
    else:
        matched = _by_instruction(ours, theirs)
    rows: list[tuple[np.ndarray, ...]] = []
    for number, (one, other) in enumerate(matched):
        if config.episodes == "paired":
            values = one.values
        elif config.alignment == "dtw":
            values = _warped(one, other)
        else:
            values = _at_same_share(one.values, len(other.values))
        steps = len(other.values)
        masks = np.broadcast_to(one.mask, (steps, 32)), np.broadcast_to(other.mask, (steps, 32))
        rows.append((values, masks[0], other.values, masks[1], np.full(steps, number)))
    return ActionPairs(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _tracks(datasets: Sequence[EpisodeDataset], normalizer: Normalizer) -> list[Track]:
    tracks = []
    for dataset in datasets:
        unifier = ActionUnifier(dataset.embodiment)
        for index in range(len(dataset)):
            episode = dataset[index]
            where = f"{dataset.name}: episode {episode.episode_id}"
            try:
                motion = unify_motion(episode, unifier)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            mask = motion.action_mask & normalizer.mask
            values = np.where(mask, normalizer.normalize(motion.action.astype(np.float64)), 0.0)
            tracks.append(Track(where, episode.told, values, mask))
    return tracks


def _paired(source: list[Track], target: list[Track]) -> list[tuple[Track, Track]]:
    if len(source) != len(target):
        raise ValueError(
            f"paired episodes: {len(source)} of one robot and {len(target)} of the other; record them "
            "together, or pair by instruction (episodes: instruction)"
        )
    for one, other in zip(source, target, strict=True):
        what = ("steps", len(one.values), len(other.values))
        if what[1] == what[2]:
            what = ("instruction", _words(one.instruction), _words(other.instruction))
        if what[1] != what[2]:
            raise ValueError(
                f"paired episodes: {one.where} and {other.where} differ in {what[0]} ({what[1]!r} and "
                f"{what[2]!r}); pair by instruction instead (episodes: instruction)"
            )
    return list(zip(source, target, strict=True))


def _by_instruction(source: list[Track], target: list[Track]) -> list[tuple[Track, Track]]:
    known: dict[str, list[Track]] = defaultdict(list)
    for track in source:
        known[_words(track.instruction)].append(track)
    taken: dict[str, int] = defaultdict(int)
    matched = []
    for track in target:
        words = _words(track.instruction)
        if taken[words] < len(known.get(words, ())):
            matched.append((known[words][taken[words]], track))
            taken[words] += 1
    if not matched:
        names = [tracks[0].instruction if tracks else "nothing" for tracks in (source, target)]
        raise ValueError(
            f"the two robots' episodes have no instruction in common ({names[0]!r}, {names[1]!r}, ...); "
            "record both doing the same tasks, in the same words"
        )
    return matched


def _words(instruction: str) -> str:
    """An instruction without what does not change it: case, spaces, the last stop."""
    return " ".join(instruction.lower().split()).removesuffix(".")


def _at_same_share(values: Float[np.ndarray, "T S"], steps: int) -> Float[np.ndarray, "N S"]:
    """`values` at the middle of each of `steps` equal shares of the episode."""
    places = (np.arange(steps) + 0.5) / steps * len(values) - 0.5
    lower = np.clip(np.floor(places).astype(int), 0, len(values) - 1)
    upper = np.minimum(lower + 1, len(values) - 1)
    share = np.clip(places - lower, 0.0, 1.0)[:, None]
    return (1 - share) * values[lower] + share * values[upper]


def _warped(source: Track, target: Track) -> Float[np.ndarray, "N S"]:
    """Mean of the source steps that dynamic time warping lays on each target step."""
    shared = source.mask & target.mask
    if not shared.any():
        raise ValueError(
            f"{source.where} and {target.where} share no slot that DTW could compare; use alignment: time"
        )
    path = warp(source.values[:, shared], target.values[:, shared])
    sums, counts = np.zeros((len(target.values), 32)), np.zeros((len(target.values), 1))
    np.add.at(sums, path[:, 1], source.values[path[:, 0]])
    np.add.at(counts, path[:, 1], 1.0)
    return sums / counts


def warp(first: Float[np.ndarray, "T F"], second: Float[np.ndarray, "N F"]) -> Int[np.ndarray, "L 2"]:
    """Steps (i, j) of the cheapest monotone way through both sequences, ends on ends."""
    distance = np.abs(first[:, None] - second[None]).sum(axis=2) + _COUNT_WEIGHT
    total = np.full((len(first) + 1, len(second) + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(len(first)):
        from_above = np.minimum(total[i, 1:], total[i, :-1])
        for j in range(len(second)):
            total[i + 1, j + 1] = distance[i, j] + min(from_above[j], total[i + 1, j])
    i, j = len(first), len(second)
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda place: total[place])
    return np.array(path[::-1])
