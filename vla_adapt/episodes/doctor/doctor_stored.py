"""What the doctor asks beyond an `Episode`, where a dataset can tell: stored times, marks, declarations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vla_adapt.embodiment import Component, GripperRange
from vla_adapt.episodes.mapping.entry import Source
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.source import Episode, EpisodeDataset
from vla_adapt.episodes.storage.feature_spec import Kind
from vla_adapt.episodes.subset import EpisodeSubset
from vla_adapt.types import VectorKind

TIME_NAMES = ("timestamp", "timestamps", "time", "time_s", "time_stamp")
END_NAMES = ("is_last",)


class StoredGripper(NamedTuple):
    """A stored gripper field before it is clipped: which, its declared range, its opening [T]."""

    what: str
    declared: GripperRange
    opening: Float[np.ndarray, " T"]


def mapped(dataset: EpisodeDataset, number: int = 0) -> tuple[MappedDataset, int] | None:
    """The stored dataset behind views of it, and the episode's number there; None: it is not a stored one."""
    while isinstance(dataset, EpisodeSubset):
        number, dataset = int(dataset.indices[number]), dataset.dataset
    return (dataset, number) if isinstance(dataset, MappedDataset) else None


def skipped(dataset: EpisodeDataset) -> Sequence[str]:
    """What was left out when the dataset was opened with `on_error="skip"`, one line each."""
    found = mapped(dataset) if len(dataset) else None
    return tuple(getattr(found[0].store, "skipped", ())) if found else ()


def signal(
    dataset: EpisodeDataset, number: int, episode: Episode, names: tuple[str, ...]
) -> Float[np.ndarray, " T"] | None:
    """A per-step scalar by any of its usual names: a field of the stored data, or an extra of the episode."""
    found = mapped(dataset, number)
    if found is not None:
        store = found[0].store
        for field, leaf in store.fields.items():
            if field.rpartition("/")[2] in names and leaf.kind is Kind.NUMBER:
                return _scalar(store.numbers(field, found[1]))
    for key in episode.extra_keys:
        if key.rpartition("/")[2] in names:
            return _scalar(episode.extra(key))
    return None


def stored_grippers(dataset: EpisodeDataset, number: int) -> Iterator[StoredGripper]:
    """Grippers whose entry declares open and closed as stored; an `Episode` has them clipped already."""
    found = mapped(dataset, number)
    if found is None:
        return
    data, at = found
    for what, vector in (("action", data.entry.action), ("state", data.entry.state)):
        for name, parts in vector.items() if isinstance(vector, dict) else ():
            for part in parts:
                if part.open is None or part.closed is None or part.relative is not None:
                    continue
                if part.field not in data.store.fields:
                    continue  # computed, not stored
                values = data.store.numbers(part.field, at)
                values = _flat(values)[:, _columns(part)].astype(np.float64)
                opening = (values[:, 0] - part.closed) / (part.open - part.closed)
                declared = GripperRange(open=part.open, closed=part.closed)
                yield StoredGripper(f"{what} '{name}' (stored field {part.field})", declared, opening)


def declared_zero(dataset: EpisodeDataset, kind: VectorKind) -> set[int]:
    """Native columns that the entry sets to a constant 0, as the robot cannot move that way."""
    found = mapped(dataset) if len(dataset) else None
    if found is None:
        return set()
    vector = found[0].entry.action if kind == "action" else found[0].entry.state
    if not isinstance(vector, dict):
        return set()
    zero: set[int] = set()
    start = 0
    for component in dataset.embodiment.components(kind):
        zero |= {start + place for place in _zeros(component, vector.get(component.name, ()))}
        start += component.native_size
    return zero


def _zeros(component: Component, parts: Sequence[Source]) -> Iterator[int]:
    place = 0
    for part in parts:
        if part.columns is None:
            place += component.native_size  # takes all of a field, so it is the only part
            continue
        for column in part.columns:
            if column is None:
                yield place
            place += 1


def _columns(part: Source) -> list[int] | slice:
    return slice(0, 1) if part.columns is None else [column for column in part.columns if column is not None]


def _scalar(values: np.ndarray) -> Float[np.ndarray, " T"] | None:
    flat = _flat(values)
    return flat[:, 0].astype(np.float64) if flat.shape[1] == 1 else None


def _flat(values: np.ndarray) -> Shaped[np.ndarray, "T F"]:
    return values.reshape(len(values), math.prod(values.shape[1:]))  # not -1: there may be no steps
