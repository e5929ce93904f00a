"""What lies where in an HDF5 file of demonstrations: its episodes, their fields, masks and instruction.

An episode is a group that holds the *clock*, the data set whose first axis counts its steps (the action):
the groups of `data/` (robomimic, LIBERO), the file itself (ALOHA), or any groups at the top of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.format_marks import natural_key

INSTRUCTION = "language_instruction"
LIBERO_ATTRIBUTES = ("problem_info", "bddl_file_name")
EVERYTHING, DEFAULT_SPLIT = "all", "train"
ENCODED = "padded"
_IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG")
# Longer string attributes, and those that are JSON, are settings of a simulator rather than an instruction.
_LONGEST_TEXT = 1000


def episode_groups(file: h5py.File, clock: str) -> tuple[list[str], list[str]]:
    """Groups holding one episode each, in natural order, and complaints about what should hold one.

    A group that is named like an episode (up to its number) but lacks the clock is a damaged episode.
    """
    if isinstance(file.get(clock), h5py.Dataset):
        return ["/"], []
    top = "data" if isinstance(file.get("data"), h5py.Group) else "/"
    groups = {key: item for key, item in group_of(file, top).items() if isinstance(item, h5py.Group)}
    holding = {key for key, group in groups.items() if isinstance(group.get(clock), h5py.Dataset)}
    if not holding:
        names = ", ".join(field_names(file)) or "no data sets at all"
        return [], [f"{file.filename}: no data set '{clock}' in any episode; it has {names}"]
    stems = {_stem(key) for key in holding}
    complaints = [
        f"{file.filename}: {key} has no data set '{clock}'; it has "
        + (", ".join(name for name, _ in datasets(group)) or "nothing")
        for key, group in groups.items()
        if key not in holding and _stem(key) in stems
    ]
    paths = [key if top == "/" else f"{top}/{key}" for key in sorted(holding, key=natural_key)]
    return paths, complaints


def field_names(file: h5py.File) -> list[str]:
    """Paths of all data sets inside an episode, before it is known what an episode is."""
    return sorted({re.sub(r"^(data/)?[^/]*\d/", "", name) for name, _ in datasets(file)})


def group_of(file: h5py.File, name: str) -> h5py.Group:
    """A group of a file that is known to be there."""
    group = file[name]
    assert isinstance(group, h5py.Group)
    return group


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every data set below a group, by its path inside the group."""
    for key in list(group):
        item = group.get(str(key))
        if isinstance(item, h5py.Dataset):
            yield str(key), item
        elif isinstance(item, h5py.Group):
            yield from ((f"{key}/{name}", found) for name, found in datasets(item))


def leaf_of(dataset: h5py.Dataset, steps: int) -> LeafSpec | None:
    """What one step's value of a data set is; None when its first axis is not the episode's time."""
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if text and dataset.shape in ((), (1,)):
        return LeafSpec(Kind.TEXT)
    if not dataset.shape or dataset.shape[0] != steps:
        return None
    shape, dtype = dataset.shape[1:], dataset.dtype
    if dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3):
        return LeafSpec(Kind.IMAGE, shape, "uint8")
    rows_of_bytes = (
        text or (dtype == np.uint8 and len(shape) == 1) or h5py.check_vlen_dtype(dtype) == np.uint8
    )
    if rows_of_bytes and steps and encoded(dataset[0])[:4].startswith(_IMAGE_STARTS):
        return LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8", ENCODED)
    if text:
        return LeafSpec(Kind.TEXT) if not shape else LeafSpec(Kind.RAGGED, shape)
    if dtype.kind in "biuf":
        return LeafSpec(Kind.NUMBER, shape, "float32" if dtype == np.float64 else dtype.name)
    return LeafSpec(Kind.RAGGED, shape, str(dtype))


def encoded(row: Any) -> bytes:
    """The bytes of an encoded image without the zeros it is padded with; no JPEG or PNG ends in a zero."""
    return (row.tobytes() if isinstance(row, np.ndarray) else bytes(row)).rstrip(b"\0")


def nesting(group: str) -> list[str]:
    """The group, those it lies in, and the file, innermost first: data/demo_3 -> data/demo_3, data, /."""
    parts = group.strip("/").split("/") if group != "/" else []
    return ["/".join(parts[:depth]) for depth in range(len(parts), 0, -1)] + ["/"]


def all_attributes(file: h5py.File, group: str) -> dict[str, Any]:
    """Attributes of an episode, over those of the groups it lies in, over those of the file."""
    merged: dict[str, Any] = {}
    for name in reversed(nesting(group)):
        merged |= dict(file[name].attrs)
    return merged


def text_attributes(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes that are plain words."""
    texts = {key: as_text(value) for key, value in attributes.items() if isinstance(value, str | bytes)}
    return {key: text for key, text in texts.items() if len(text) <= _LONGEST_TEXT and text[:1] not in "{[<"}


def derived_instruction(attributes: Mapping[str, Any]) -> str | None:
    """LIBERO's instruction of a whole file, from `problem_info` or else the name of the BDDL file."""
    try:
        words = json.loads(as_text(attributes.get("problem_info") or "{}")).get(INSTRUCTION, "")
    except (ValueError, AttributeError):
        words = ""
    words = " ".join(words) if isinstance(words, list) else str(words)
    if words.strip('" '):
        return words.strip('" ')
    name = as_text(attributes.get("bddl_file_name") or "").rsplit("/", 1)[-1]
    if not name.endswith(".bddl"):
        return None
    return re.sub(r"^[A-Z0-9_]*SCENE\d+_", "", name.removesuffix(".bddl")).replace("_", " ")


def masks(file: h5py.File) -> dict[str, list[str]]:
    """robomimic's filter keys: split name -> names of its episodes in the file's order."""
    group = file.get("mask")
    if not isinstance(group, h5py.Group):
        return {}
    return {key: [as_text(name) for name in np.asarray(item)] for key, item in datasets(group)}


def as_text(value: Any) -> str:
    """Stored text; damaged UTF-8 is kept readable rather than refused."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _stem(key: str) -> str:
    return re.sub(r"\d+$", "", key)
