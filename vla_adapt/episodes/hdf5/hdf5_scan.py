"""Go once through HDF5 files: check every episode, note its length, copy its small numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from vla_adapt.episodes.hdf5.hdf5_files import open_hdf5
from vla_adapt.episodes.hdf5.hdf5_layout import (
    INSTRUCTION,
    all_attributes,
    datasets,
    derived_instruction,
    episode_groups,
    group_of,
    leaf_of,
    masks,
    text_attributes,
)
from vla_adapt.episodes.storage.damage import DamageLog
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.progress_bar import Bar, progress_bar

# A step's numbers are copied into the index up to this many; larger ones stay in the file.
MAX_INDEXED_NUMBERS = 64


@dataclass
class Contents:
    """All readable episodes of some files, in order.

    Attributes:
        file: file number of each episode.
        group: its group inside the file.
        length: its steps.
        fields: per-step fields; of a field that is not required, those that agree in all files.
        masks: filter key -> episode numbers.
        columns: indexed number field -> name of the file with its values, row after row.
        partial: field that is none of `fields`, because not all episodes have it alike -> why.
    """

    file: list[int] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    fields: dict[str, LeafSpec] = field(default_factory=dict)
    masks: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)


def scan(files: Sequence[Path], required: Sequence[str], folder: Path, log: DamageLog) -> Contents:
    """Read the structure of every file, and write the required small numbers into `folder`.

    Args:
        files: in the order of their episodes.
        required: fields every episode must have, at equal length; the first one's length is the episode's.
        folder: for the columns.
        log: takes what is damaged.

    Raises:
        ValueError: damage, unless `log` notes it.
    """
    contents = Contents()
    with ExitStack() as stack, progress_bar("indexing HDF5", len(files), "files") as bar:
        columns: dict[str, IO[bytes]] = {}
        for number, path in enumerate(files):
            bar.note, bar.done = path.name, number
            try:
                file = open_hdf5(path)
            except ValueError as error:
                log.report(str(error))
                continue
            with file:
                groups, lacking = episode_groups(file, required[0])
                for complaint in lacking:
                    log.report(complaint)
                if not groups:
                    continue
                if not contents.fields and any(_steps(file, group, required[0]) for group in groups):
                    contents.fields = _fields(file, groups, required[0])
                    contents.columns = _column_names(contents.fields, required)
                    for name in contents.columns.values():
                        columns[name] = stack.enter_context((folder / name).open("wb"))
                _scan_file(contents, number, file, groups, required, columns, log, bar)
    return contents


def _scan_file(
    contents: Contents,
    number: int,
    file: h5py.File,
    groups: Sequence[str],
    required: Sequence[str],
    columns: Mapping[str, IO[bytes]],
    log: DamageLog,
    bar: Bar,
) -> None:
    numbers: dict[str, int] = {}
    for done, group in enumerate(groups):
        bar.done = number + done / len(groups)
        try:
            steps = _check_episode(file, group, required, contents.fields)
            values = [_column(file, group, name, contents.fields[name]) for name in contents.columns]
        except ValueError as error:
            log.report(str(error))
            continue
        for name, rows in zip(contents.columns.values(), values, strict=True):
            columns[name].write(rows.tobytes())
        if steps:
            _note_odd_fields(contents, file, group, steps)
        numbers[group.rsplit("/", 1)[-1]] = len(contents.group)
        contents.file.append(number)
        contents.group.append(group)
        contents.length.append(steps)
    if any(_steps(file, group, required[0]) for group in groups):  # else nothing tells what a step holds
        found = _fields(file, groups, required[0])
        odd = [n for n, leaf in contents.fields.items() if n not in required and found.get(n) != leaf]
        for name in odd:
            was, now = contents.fields.pop(name), found.get(name)
            here = Path(file.filename).name
            contents.partial[name] = f"is {now} in {here}, {was} before" if now else f"{here} lacks it"
    stored = {group.rsplit("/", 1)[-1] for group in groups}
    for mask, names in masks(file).items():
        for name in names:
            if name not in stored:
                log.report(f"{file.filename}: mask/{mask} names {name}, which is no episode of the file", 0)
        contents.masks.setdefault(mask, []).extend(numbers[name] for name in names if name in numbers)


def _note_odd_fields(contents: Contents, file: h5py.File, group: str, steps: int) -> None:
    """Forget fields that an episode does not have (required ones it has), note those that others lack."""
    there, fields = dict(datasets(group_of(file, group))), contents.fields
    where = f"{Path(file.filename).name}: {group}"
    for name in [name for name, leaf in fields.items() if leaf.kind is not Kind.TEXT and name not in there]:
        del fields[name]
        contents.partial[name] = f"{where} lacks it"
    for name, dataset in there.items():
        if name not in fields and name not in contents.partial and leaf_of(dataset, steps) is not None:
            contents.partial[name] = f"{where} has it, not every episode before"


def _check_episode(
    file: h5py.File, group: str, required: Sequence[str], known: Mapping[str, LeafSpec]
) -> int:
    """Steps of an episode whose required fields are all there and alike."""
    episode = group_of(file, group)
    where = f"{file.filename}: {group}"
    steps = _steps(file, group, required[0])
    for name in required:
        dataset = episode.get(name)
        if not isinstance(dataset, h5py.Dataset):
            has = ", ".join(found for found, _ in datasets(episode))
            raise ValueError(f"{where} has no data set '{name}'; it has {has}")
        if not dataset.shape or dataset.shape[0] != steps:
            raise ValueError(
                f"{where}: '{name}' has shape {list(dataset.shape)}, '{required[0]}' has {steps} steps; "
                "one of them is cut or belongs to other times"
            )
        leaf = leaf_of(dataset, steps)
        if steps and name in known and leaf != known[name]:
            raise ValueError(
                f"{where}: '{name}' is {leaf}, in earlier episodes {known[name]}; one dataset has one kind"
            )
    declared = episode.attrs.get("num_samples")
    if declared is not None and int(declared) != steps:
        raise ValueError(
            f"{where}: '{required[0]}' has {steps} steps, the attribute num_samples says {int(declared)}; "
            "the episode is cut or was edited: write num_samples anew or drop it"
        )
    return steps


def _column(file: h5py.File, group: str, name: str, leaf: LeafSpec) -> np.ndarray:
    dataset = group_of(file, group)[name]
    assert isinstance(dataset, h5py.Dataset)
    try:
        return np.asarray(dataset[...], np.dtype(leaf.dtype))
    except OSError as error:
        raise ValueError(f"{file.filename}: '{group}/{name}' cannot be read ({error})") from None


def _steps(file: h5py.File, group: str, clock: str) -> int:
    dataset = group_of(file, group)[clock]
    assert isinstance(dataset, h5py.Dataset)
    return dataset.shape[0] if dataset.shape else 0


def _fields(file: h5py.File, groups: Sequence[str], clock: str) -> dict[str, LeafSpec]:
    """Per-step fields of a file, as its first episode that has any step shows them."""
    first = next((group for group in groups if _steps(file, group, clock)), groups[0])
    episode, attributes = group_of(file, first), all_attributes(file, first)
    fields = dict.fromkeys(text_attributes(attributes), LeafSpec(Kind.TEXT))
    if derived_instruction(attributes) is not None:
        fields[INSTRUCTION] = LeafSpec(Kind.TEXT)
    leaves = ((name, leaf_of(dataset, _steps(file, first, clock))) for name, dataset in datasets(episode))
    return fields | {name: leaf for name, leaf in leaves if leaf is not None}


def _column_names(fields: Mapping[str, LeafSpec], required: Sequence[str]) -> dict[str, str]:
    small = [
        name
        for name in required
        if (leaf := fields.get(name)) is not None
        and leaf.kind is Kind.NUMBER
        and math.prod(leaf.shape) <= MAX_INDEXED_NUMBERS
    ]
    return {name: f"column{number}" for number, name in enumerate(small)}
