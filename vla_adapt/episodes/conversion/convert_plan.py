"""What a conversion carries over and under which names, and what the target's format cannot hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from vla_adapt.episodes.conversion.convert_facts import LEROBOT_FACTS, RECORDED_AS, CarriedFacts, TypedFacts
from vla_adapt.episodes.conversion.convert_names import (
    StorageFormat,
    field_names,
    instruction_name,
    refuse_twins,
    renamed_entry,
)
from vla_adapt.episodes.lerobot.lerobot_features import STANDARD, TASK, feature_of
from vla_adapt.episodes.lerobot.lerobot_store import LeRobotStore
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.entry_fields import METADATA
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.format_marks import LEROBOT_INFO

# A timestamp this much of a step off the frame's number says something that the rate does not.
_EVEN = 1e-2
_NAMED = 5


@runtime_checkable
class ExactNumbers(Protocol):
    """A store that holds numbers more exactly than its `numbers` gives them."""

    def exact_dtype(self, field: str) -> np.dtype: ...

    def exact_numbers(self, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]: ...


@runtime_checkable
class PartialFields(Protocol):
    """A store that knows of fields that only some episodes have, and why they are none of its own."""

    @property
    def partial_fields(self) -> Mapping[str, str]: ...


class Plan:
    """How a dataset becomes one of another format; settled before anything is written.

    Args:
        splits: the dataset's splits that are to be converted.
        to: the format.

    Attributes:
        names: carried source field -> target name.
        kept: of each split the episodes that are carried.
        rate_hz: of the recordings.
        left_behind: what of the source the target will lack, or have less exactly: one line each.
    """

    def __init__(self, splits: Sequence[MappedDataset], to: StorageFormat):
        self.splits = splits
        self.to: StorageFormat = to
        self.left_behind: list[str] = []
        source, store = splits[0], splits[0].store
        own = store.rate_hz if isinstance(store, LeRobotStore) else source.entry.rate_hz
        self.rate_hz: float = own or source.embodiment.rate_hz
        self._fields = self._carried_fields()
        self.names = field_names(self._fields, to)
        self._dtypes = {field: self._dtype(field) for field in self.of_kind(Kind.NUMBER)}
        self.kept = [self._carried_episodes(dataset) for dataset in splits]
        self._fact_leaves = store.fact_leaves if isinstance(store, TypedFacts) else {}
        self._fact_names = self._named_facts()
        self._facts = self._carried_facts()

    def of_kind(self, kind: Kind) -> dict[str, str]:
        """Source field -> target name of all carried fields of a kind."""
        return {field: name for field, name in self.names.items() if self._fields[field].kind is kind}

    @property
    def instruction(self) -> str:
        """Name of the target field that holds every step's instruction."""
        return instruction_name(self.names, self.to)

    def numbers(self, dataset: MappedDataset, field: str, episode: int) -> Shaped[np.ndarray, "T ..."]:
        """A number field of an episode as the target is to hold it."""
        store = dataset.store
        exact = isinstance(store, ExactNumbers)
        values = store.exact_numbers(field, episode) if exact else store.numbers(field, episode)
        return values.astype(self._dtypes[field], copy=False)

    def facts(self, dataset: MappedDataset, episode: int) -> dict[str, Any]:
        """Facts about an episode; in LeRobot None where it lacks one."""
        return self._facts.values(self._renamed_facts(dataset, episode))

    def fact_examples(self) -> dict[str, Any]:
        """A value of every fact that is carried."""
        return self._facts.examples(self._all_facts())

    def entry(self) -> DatasetEntry:
        """The source's entry in the target's names; a rate unlike the robot's goes into it."""
        source = self.splits[0]
        entry = renamed_entry(source.entry, self.names, self.instruction)
        same = self.rate_hz == source.embodiment.rate_hz
        wanted = (entry.episode_id or "").removeprefix(METADATA)
        named_by = RECORDED_AS if RECORDED_AS in self._facts.names else self._fact_names.get(wanted)
        rate_hz = None if same else self.rate_hz
        return entry.model_copy(update={"rate_hz": rate_hz, "episode_id": named_by})

    def _carried_fields(self) -> dict[str, LeafSpec]:
        store = self.splits[0].store
        fields = dict(store.fields)
        partial = store.partial_fields if isinstance(store, PartialFields) else {}
        self.left_behind += [f"field '{name}': {why}" for name, why in sorted(partial.items())]
        for name, leaf in sorted(fields.items()):
            if not _can_be_carried(leaf):
                self.left_behind.append(f"field '{name}': {self.to} cannot hold {leaf} here")
                del fields[name]
        for name in (*_derived(self.splits, self.to), _instruction_field(self.splits[0])):
            fields.pop(name, None)
        self.left_behind += _lost_names(self.splits[0], fields)
        return fields

    def _dtype(self, field: str) -> np.dtype:
        """In the target: as stored, but RLDS has no 64-bit floats that every reader of it takes."""
        store = self.splits[0].store
        exact = isinstance(store, ExactNumbers)
        dtype = store.exact_dtype(field) if exact else store.numbers(field, 0).dtype
        if self.to == "rlds" and dtype == np.float64:
            self.left_behind.append(f"field '{field}': 64-bit floats became 32-bit")
            return np.dtype(np.float32)
        return dtype

    def _carried_episodes(self, dataset: MappedDataset) -> Sequence[int]:
        """All, but LeRobot has none without steps."""
        empty = np.flatnonzero(dataset.store.lengths == 0).tolist()
        if self.to == "rlds" or not empty:
            return range(len(dataset))
        some = ", ".join(dataset.episode_id(episode) for episode in empty[:_NAMED])
        more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        self.left_behind.append(f"episodes without steps: {some}{more}")
        return np.flatnonzero(dataset.store.lengths).tolist()

    def _named_facts(self) -> dict[str, str]:
        """The source's name -> the target's of every fact but those that LeRobot derives."""
        derived = LEROBOT_FACTS if isinstance(self.splits[0].store, LeRobotStore) else ()
        names: dict[str, str] = {}
        taken = LEROBOT_FACTS if self.to == "lerobot" else ()
        if (self.splits[0].entry.episode_id or "").removeprefix(METADATA) != RECORDED_AS:
            taken = (*taken, RECORDED_AS)
        for name in self._found_facts():
            leaf = self._fact_leaves.get(name)
            if leaf is not None and leaf.kind is Kind.IMAGE and self.to == "lerobot":  # not even looked at
                self.left_behind.append(f"episode fact '{name}': LeRobot has no place for images of episodes")
            elif name not in derived:
                there = name.removeprefix("recorded_")
                back = self.to == "rlds" and there in LEROBOT_FACTS
                names[name] = there if back else f"recorded_{name}" if name in taken else name
        refuse_twins(names, "episode facts", self.to)
        return names

    def _carried_facts(self) -> CarriedFacts:
        """With the episodes' names among them, where neither numbers nor another fact give them."""
        names, leaves = self._fact_names, self._fact_leaves
        known = {names[name]: leaf for name, leaf in leaves.items() if name in names}
        facts = CarriedFacts(self._all_facts(), self.to, known)
        self.left_behind += facts.left_behind
        wanted = (self.splits[0].entry.episode_id or "").removeprefix(METADATA)
        whole = all(len(kept) == len(split) for kept, split in zip(self.kept, self.splits, strict=True))
        if RECORDED_AS not in names.values() and (names.get(wanted) in facts.names if wanted else whole):
            facts.drop(RECORDED_AS)
        return facts

    def _found_facts(self) -> dict[str, None]:
        """Names of the facts of all carried episodes, in order."""
        each = ((dataset, i) for dataset, kept in zip(self.splits, self.kept, strict=True) for i in kept)
        return dict.fromkeys(name for dataset, episode in each for name in dataset.metadata(episode))

    def _all_facts(self) -> Iterator[Mapping[str, Any]]:
        for dataset, episodes in zip(self.splits, self.kept, strict=True):
            for episode in episodes:
                yield self._renamed_facts(dataset, episode)

    def _renamed_facts(self, dataset: MappedDataset, episode: int) -> dict[str, Any]:
        facts = dataset.metadata(episode)
        renamed = {new: facts.get(old) for old, new in self._fact_names.items()}
        return {RECORDED_AS: dataset.episode_id(episode), **renamed}


def _can_be_carried(leaf: LeafSpec) -> bool:
    if leaf.optional or 0 in leaf.shape or (leaf.kind is Kind.TEXT and leaf.shape):
        return False
    if leaf.kind is Kind.IMAGE:
        return leaf.dtype == "uint8" and leaf.shape[-1:] in ((3,), ())
    return leaf.kind in (Kind.NUMBER, Kind.TEXT)


def _instruction_field(dataset: MappedDataset) -> str:
    """The text field that holds every step's instruction; "" if none does."""
    leaf = dataset.store.fields.get(dataset.entry.instruction)
    stored = dataset.entry.instruction_text is None and leaf is not None and leaf.kind is Kind.TEXT
    return dataset.entry.instruction if stored else ""


def _derived(splits: Sequence[MappedDataset], to: StorageFormat) -> Iterator[str]:
    """LeRobot's own columns that say nothing beyond the order of the steps; timestamps may, if uneven."""
    stores = [dataset.store for dataset in splits]
    if not all(isinstance(store, LeRobotStore) for store in stores):
        return
    yield from (name for name in STANDARD if name != "timestamp")
    yield TASK
    if (to == "lerobot" and "recorded.timestamp" in stores[0].fields) or all(map(_is_even, stores)):
        yield "timestamp"


def _is_even(store: Any) -> bool:
    steps = np.concatenate([np.arange(length) for length in store.lengths])
    return bool(np.abs(store.column("timestamp") * store.rate_hz - steps).max(initial=0.0) < _EVEN)


def _lost_names(dataset: MappedDataset, fields: Mapping[str, LeafSpec]) -> list[str]:
    """LeRobot features whose numbers have names that mean something."""
    if not isinstance(dataset.store, LeRobotStore):
        return []
    declared = json.loads((dataset.store.path / LEROBOT_INFO).read_text(encoding="utf-8"))["features"]
    lost = []
    for name, leaf in fields.items():
        if leaf.kind is not Kind.NUMBER or name in STANDARD or name not in declared:
            continue
        names = declared[name].get("names")
        if names and names != feature_of(leaf)["names"]:
            lost.append(f"names of the numbers of '{name}': {json.dumps(names)}")
    return lost
