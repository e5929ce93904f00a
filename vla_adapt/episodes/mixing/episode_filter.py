"""Which episodes of a dataset count: by length, instruction, metadata or name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field, field_validator

from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.progress_bar import progress_bar
from vla_adapt.suggest import did_you_mean


class EpisodeFilter(BaseModel):
    """An episode counts when every condition given holds.

    Attributes:
        min_steps, max_steps: length after the entry's transforms and `stride`, both included.
        instruction: regular expression (Python's) that must occur in the instruction, or in one of them where
            it changes within the episode.
        not_instruction: one that must occur in none.
        has_instruction: leave out episodes whose instruction is empty, if only at some steps.
        metadata: episode-level field -> the value, or list of values, it must have ({success: true}).
        ids: only these episodes, by name; or a text file with one name a line. All must be there.
        not_ids: all but these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    min_steps: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    instruction: str | None = None
    not_instruction: str | None = None
    has_instruction: bool = False
    metadata: dict[str, Any] = {}
    ids: tuple[str, ...] | str | None = None
    not_ids: tuple[str, ...] | str | None = None

    @field_validator("instruction", "not_instruction")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"got {value!r}, no regular expression: {error}") from None
        return value

    def without_ids(self) -> EpisodeFilter:
        """The same conditions, episodes by name left aside."""
        return self.model_copy(update={"ids": None, "not_ids": None})


def filter_episodes(
    dataset: EpisodeDataset, wanted: EpisodeFilter
) -> tuple[Int64[np.ndarray, " K"], Counter[str]]:
    """Numbers of the episodes that count, in order, and how many each condition was the first to leave out.

    Raises:
        ValueError: a listed name or a metadata field is not there; no episode is left.
    """
    gone: Counter[str] = Counter()
    index = _by_length(dataset, wanted, gone)
    index = _by_name(dataset, wanted, index, gone)
    index = _by_facts(dataset, wanted, index, gone)
    if not len(index):
        raise ValueError(
            f"{dataset.name}: the filter leaves none of {len(dataset)} episodes ({told(gone)}); loosen it"
        )
    return index, gone


def told(gone: Counter[str]) -> str:
    """The reasons as a phrase: "3 by min_steps, 1 by ids"."""
    return ", ".join(f"{count} by {reason}" for reason, count in gone.items()) or "it has none"


def _by_length(dataset: EpisodeDataset, wanted: EpisodeFilter, gone: Counter[str]) -> np.ndarray:
    lengths = dataset.lengths
    keep = np.ones(len(lengths), bool)
    for reason, bound, fails in (
        ("min_steps", wanted.min_steps, np.less),
        ("max_steps", wanted.max_steps, np.greater),
    ):
        if bound is not None:
            out = keep & fails(lengths, bound)
            gone.update({reason: int(out.sum())} if out.any() else {})
            keep &= ~out
    return np.flatnonzero(keep)


def _by_name(
    dataset: EpisodeDataset, wanted: EpisodeFilter, index: np.ndarray, gone: Counter[str]
) -> np.ndarray:
    if wanted.ids is None and wanted.not_ids is None:
        return index
    names = [episode_facts.episode_id(dataset, i) for i in range(len(dataset))]
    for reason, listed, keep_listed in (("ids", wanted.ids, True), ("not_ids", wanted.not_ids, False)):
        if listed is None:
            continue
        chosen = _listed(dataset.name, reason, listed, names)
        kept = [i for i in index if (names[i] in chosen) == keep_listed]
        gone.update({reason: len(index) - len(kept)} if len(kept) < len(index) else {})
        index = np.asarray(kept, np.int64)
    return index


def _listed(dataset: str, what: str, given: Collection[str] | str, names: list[str]) -> frozenset[str]:
    if isinstance(given, str):
        file = Path(given).expanduser()
        if not file.is_file():
            raise ValueError(
                f"{dataset}: filter.{what}: no file '{given}'; wanted a list of episode names, or a text "
                "file with one a line"
            )
        given = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(
            f"{dataset}: filter.{what} names {len(unknown)} episodes that are not there, first "
            f"'{unknown[0]}'; {did_you_mean(unknown[0], names[:1000])}"
        )
    return frozenset(given)


def _by_facts(
    dataset: EpisodeDataset, wanted: EpisodeFilter, index: np.ndarray, gone: Counter[str]
) -> np.ndarray:
    reads_text = wanted.has_instruction or wanted.instruction or wanted.not_instruction
    if not reads_text and not wanted.metadata:
        return np.asarray(index, np.int64)
    kept = []
    with progress_bar(f"filtering {dataset.name}", len(index), "episodes") as bar:
        for i in index.tolist():
            reason = _reason_of_text(episode_facts.instructions(dataset, i), wanted) if reads_text else None
            reason = reason or _reason_of_metadata(dataset, i, wanted)
            if reason:
                gone[reason] += 1
            else:
                kept.append(i)
            bar.advance()
    return np.asarray(kept, np.int64)


def _reason_of_text(texts: Sequence[str], wanted: EpisodeFilter) -> str | None:
    if wanted.has_instruction and not (texts and all(text.strip() for text in texts)):
        return "has_instruction"
    for reason, pattern, must in (
        ("instruction", wanted.instruction, True),
        ("not_instruction", wanted.not_instruction, False),
    ):
        if pattern is not None and any(re.search(pattern, text) for text in texts) != must:
            return reason
    return None


def _reason_of_metadata(dataset: EpisodeDataset, index: int, wanted: EpisodeFilter) -> str | None:
    if not wanted.metadata:
        return None
    facts = episode_facts.metadata(dataset, index)
    for field, value in wanted.metadata.items():
        if field not in facts:
            name = episode_facts.episode_id(dataset, index)
            raise ValueError(
                f"{dataset.name}: episode {name}: no metadata '{field}' to filter by; "
                f"{did_you_mean(field, facts)}"
            )
        if facts[field] not in (value if isinstance(value, list) else [value]):
            return f"metadata.{field}"
    return None
