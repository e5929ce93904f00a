"""Check that a stored dataset has what an entry names: every field there, of the right kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from vla_adapt.episodes.mapping.computed import find_function
from vla_adapt.episodes.mapping.entry import DatasetEntry, fields_of
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.stored import StoredEpisodes
from vla_adapt.suggest import did_you_mean

METADATA = "episode_metadata/"


def check_entry(store: StoredEpisodes, entry: DatasetEntry) -> None:
    """Every field of the entry exists and is of the right kind.

    Which cameras are needed is for who looks through them: see `training.setting`.

    Raises:
        ValueError: one line naming the dataset, the field and what exists.
    """
    computed = entry.computed
    for field in (*fields_of(entry.action), *fields_of(entry.state)):
        if field not in computed:
            _check_field(store, field, Kind.NUMBER, computed)
    for name, formula in computed.items():
        wanted = find_function(formula.function).inputs
        if len(formula.of) != wanted:
            raise ValueError(
                f"{store.name}: computed field '{name}': {formula.function} takes {wanted} fields, got "
                f"{len(formula.of)}"
            )
        for field in formula.of:
            _check_field(store, field, Kind.NUMBER)
    for field in entry.cameras.values():
        _check_field(store, field, Kind.IMAGE)
    for depth in entry.depth.values():
        if not _is_kind(store, depth.field, Kind.NUMBER):
            _check_field(store, depth.field, Kind.IMAGE)
    for field in entry.extra.values():
        _check_field(store, field, Kind.NUMBER)
    if entry.instruction_text is None and entry.instruction:
        _check_instruction(store, entry.instruction)
    _check_episode_id(store, entry)
    _check_depth(store, entry)


def number_widths(store: StoredEpisodes, entry: DatasetEntry) -> dict[str, int]:
    """Numbers per step of every stored or computed number field."""
    widths = {name: math.prod(leaf.shape) for name, leaf in store.fields.items() if leaf.kind is Kind.NUMBER}
    return widths | {name: find_function(formula.function).width for name, formula in entry.computed.items()}


def is_character_codes(store: StoredEpisodes, field: str) -> bool:
    """Whether the field holds text as an array of integers."""
    leaf = store.fields.get(field)
    return (
        leaf is not None
        and leaf.kind is Kind.NUMBER
        and len(leaf.shape) == 1
        and leaf.dtype.startswith(("int", "uint"))
    )


def _is_kind(store: StoredEpisodes, field: str, kind: Kind) -> bool:
    leaf = store.fields.get(field)
    return leaf is not None and leaf.kind is kind


def _check_field(store: StoredEpisodes, field: str, kind: Kind, computed: Iterable[str] = ()) -> None:
    if _is_kind(store, field, kind):
        return
    leaf = store.fields.get(field)
    got = f"field '{field}' is {leaf}, wanted {kind.value}" if leaf else f"no field '{field}'"
    also = f"; computed: {', '.join(computed)}" if computed else ""
    raise ValueError(f"{store.name}: {got}; {kind.value} fields: {_fields(store.fields, kind)}{also}")


def _check_instruction(store: StoredEpisodes, field: str) -> None:
    if _is_kind(store, field, Kind.TEXT) or is_character_codes(store, field):
        return
    if field not in store.fields and len(store.lengths) and field.removeprefix(METADATA) in store.metadata(0):
        return
    _check_field(store, field, Kind.TEXT)


def _check_episode_id(store: StoredEpisodes, entry: DatasetEntry) -> None:
    wanted = entry.episode_id
    if wanted is None or not len(store.lengths):
        return
    metadata = store.metadata(0)
    if wanted.removeprefix(METADATA) not in metadata:
        raise ValueError(
            f"{store.name}: no episode field '{wanted}' to name episodes by; "
            f"it has {', '.join(sorted(metadata)) or 'none'}"
        )


def _check_depth(store: StoredEpisodes, entry: DatasetEntry) -> None:
    for camera in entry.depth:
        if camera not in entry.cameras:
            near = did_you_mean(camera, entry.cameras)
            raise ValueError(f"{store.name}: depth camera '{camera}' is no camera of the entry; {near}")


def _fields(fields: Mapping[str, LeafSpec], kind: Kind) -> str:
    return ", ".join(sorted(name for name, leaf in fields.items() if leaf.kind is kind)) or "none"
