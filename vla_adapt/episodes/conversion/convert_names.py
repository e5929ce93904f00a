"""How fields are called in RLDS and in LeRobot, and an entry rewritten for the other's names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from vla_adapt.episodes.lerobot.lerobot_features import CAMERA, STANDARD, TASK
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

StorageFormat = Literal["rlds", "lerobot"]

_OBSERVATION = "observation/"
_RECORDED = "recorded."
_RESERVED = {*STANDARD, TASK}


def field_names(fields: Mapping[str, LeafSpec], to: StorageFormat) -> dict[str, str]:
    """Field -> its name in the other format; there and back gives the first name again.

    "observation/state" is "observation.state", the image "observation/front" "observation.images.front". A
    field that bears a name LeRobot keeps for itself is "recorded.NAME" there.

    Raises:
        ValueError: two fields that would get the same name.
    """
    names: dict[str, str] = {}
    for field, leaf in fields.items():
        names[field] = _lerobot_name(field, leaf) if to == "lerobot" else _rlds_name(field, leaf, fields)
    refuse_twins(names, "fields", to)
    return names


def refuse_twins(names: Mapping[str, str], what: str, to: StorageFormat) -> None:
    """Raise ValueError where two of `what` (source name -> target name) would get the same name."""
    taken: dict[str, str] = {}
    for source, name in names.items():
        if name in taken:
            raise ValueError(
                f"{what} '{taken[name]}' and '{source}' would both be '{name}' in {to}; rename one"
            )
        taken[name] = source


def instruction_name(names: Mapping[str, str], to: StorageFormat) -> str:
    """Name of the field that every step's instruction goes to; not one that a carried field has."""
    if to == "lerobot":
        return TASK
    return next(name for name in ("language_instruction", "task") if name not in names.values())


def renamed_entry(entry: DatasetEntry, names: Mapping[str, str], instruction: str) -> DatasetEntry:
    """The entry of the converted data; what the conversion leaves behind (depth) is dropped from it."""
    data = _renamed(entry.model_dump(), names)
    for part in ("cameras", "extra"):
        data[part] = {key: names[field] for key, field in getattr(entry, part).items() if field in names}
    data["depth"] = {key: value for key, value in data["depth"].items() if value["field"] in names.values()}
    stand_ins = entry.stand_in_cameras.items()
    data["stand_in_cameras"] = {name: camera for name, camera in stand_ins if camera in data["cameras"]}
    data["instruction"], data["instruction_text"] = instruction, None
    for vector in ("action", "state"):
        fields = getattr(entry, vector)
        if not isinstance(fields, dict):
            data[vector] = tuple(names.get(field, field) for field in fields)
    return DatasetEntry.model_validate(data)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Stored names replaced wherever an entry's parts hold one: under `field` and `of`."""
    if isinstance(value, list | tuple):
        return tuple(_renamed(item, names) for item in value)
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value.get("field"), str):
        renamed["field"] = names.get(value["field"], value["field"])
    if "of" in value:
        renamed["of"] = tuple(names.get(field, field) for field in value["of"])
    return renamed


def _lerobot_name(field: str, leaf: LeafSpec) -> str:
    if leaf.kind is Kind.IMAGE and not field.startswith(CAMERA):
        return CAMERA + field.removeprefix(_OBSERVATION).replace("/", ".")
    name = field.replace("/", ".")
    return _RECORDED + name if name in _RESERVED else name


def _rlds_name(field: str, leaf: LeafSpec, fields: Collection[str]) -> str:
    if field.removeprefix(_RECORDED) in _RESERVED:
        return field.removeprefix(_RECORDED)
    if leaf.kind is Kind.IMAGE and field.startswith(CAMERA):
        camera = field.removeprefix(CAMERA)
        taken = f"observation.{camera}" in fields
        return f"{_OBSERVATION}images/{camera}" if taken else _OBSERVATION + camera
    # A record cannot hold both a field "action" and a folder "action/": then the dot stays.
    for other in fields:
        if field.startswith(f"{other}."):
            return other.replace(".", "/") + field.removeprefix(other)
    return field.replace(".", "/")
