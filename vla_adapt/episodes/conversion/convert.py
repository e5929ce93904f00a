"""Convert a dataset between RLDS and LeRobot: every field as recorded, under the other format's names.

Nothing is mapped or transformed on the way: the entry and the embodiment travel along, renamed, so that the
result opens as the source did. 64-bit floats become 32-bit, as all readers here give them; what neither
format's writer holds (depth, ragged fields) is left behind with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from vla_adapt.episodes.conversion.convert_names import (
    StorageFormat,
    field_names,
    instruction_name,
    renamed_entry,
)
from vla_adapt.episodes.lerobot.lerobot_columns import JPEG, encode_png
from vla_adapt.episodes.lerobot.lerobot_features import STANDARD
from vla_adapt.episodes.lerobot.lerobot_store import LeRobotStore
from vla_adapt.episodes.lerobot.lerobot_writer import ImageStorage, LeRobotEpisode, LeRobotWriter, Picture
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.opening import open_dataset
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.image_codec import decode_image
from vla_adapt.episodes.storage.stored import StoredEpisodes
from vla_adapt.progress_bar import progress_bar

_RGB = LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8")
_LEROBOT_FACTS = ("episode_index", "length", "tasks")
# What an RLDS step tells of its place in the episode, where the source does not.
_PLACE_FLAGS: Mapping[str, Callable[[int], np.ndarray]] = {
    "is_first": lambda steps: np.arange(steps) == 0,
    "is_last": lambda steps: np.arange(steps) == steps - 1,
    "is_terminal": lambda steps: np.arange(steps) == steps - 1,
}


@runtime_checkable
class EncodedImages(Protocol):
    """A store that can give an image's stored bytes; None where a frame has none of its own (video)."""

    def encoded_image(self, field: str, episode: int, step: int) -> bytes | None: ...


def convert_dataset(
    source: str | Path,
    target: Path,
    to: Literal["rlds", "lerobot"],
    *,
    embodiment: str | None = None,
    entry: str | None = None,
    split: str = "train",
    images: ImageStorage = "image",
) -> int:
    """Write one split of `source` (RLDS, LeRobot or HDF5) as a new dataset in the folder `target`.

    Args:
        source: as for `open_dataset`.
        target: must not exist; appears when everything is written. RLDS goes to `target`/1.0.0.
        to: format to write.
        embodiment: the robot, where the source does not say.
        entry: how fields map onto it, where the source does not say: a catalogue name or a YAML file.
        split: which split.
        images: "image": pixels are kept exactly, JPEG and PNG as the very bytes stored, video frames as PNG.
            "video" (LeRobot only): mp4, smaller and lossy.

    Returns:
        Number of episodes written.

    Raises:
        ValueError: the source does not open, the target exists, or an episode cannot be stored.
    """
    if to == "rlds" and images == "video":
        raise ValueError("RLDS holds no video; use images='image', or convert to lerobot")
    dataset = open_dataset(source, embodiment=embodiment, entry=entry, split=split)
    plan = _Plan.of(dataset, to)
    bar = progress_bar(f"converting {dataset.name}", len(dataset), "episodes")
    with ExitStack() as stack, bar as progress:
        add = (
            _lerobot_writer(plan, target, images, stack)
            if to == "lerobot"
            else _rlds_writer(plan, target, stack)
        )
        for episode in range(len(dataset)):
            try:
                add(episode)
            except ValueError as error:
                where = f"{dataset.name}: episode {dataset.episode_id(episode)}"
                raise ValueError(f"{where}: cannot be converted: {error}") from None
            progress.advance()
    return len(dataset)


@dataclass(frozen=True)
class _Plan:
    """What is carried over: source field -> target name by kind, and the rate."""

    dataset: MappedDataset
    to: StorageFormat
    names: Mapping[str, str]
    rate_hz: float

    @classmethod
    def of(cls, dataset: MappedDataset, to: StorageFormat) -> _Plan:
        store = dataset.store
        kept = {name: leaf for name, leaf in store.fields.items() if _can_be_carried(leaf)}
        if isinstance(store, LeRobotStore):
            rate_hz = store.rate_hz
            for name in _derivable(store) if to == "rlds" else (*STANDARD, "task"):
                kept.pop(name, None)
        else:
            rate_hz = dataset.entry.rate_hz or dataset.embodiment.rate_hz
        kept.pop(_instruction_field(dataset) or "", None)
        behind = [name for name, leaf in store.fields.items() if not _can_be_carried(leaf)]
        if behind:
            warnings.warn(
                f"{dataset.name}: left behind, as {to} cannot hold them here: {', '.join(sorted(behind))}",
                stacklevel=3,
            )
        return cls(dataset, to, field_names(kept, to), rate_hz)

    def fields(self, kind: Kind) -> dict[str, str]:
        """Source field -> target name of all carried fields of a kind."""
        leaves = self.dataset.store.fields
        return {field: name for field, name in self.names.items() if leaves[field].kind is kind}

    @property
    def instruction(self) -> str:
        """Name of the target field that holds every step's instruction."""
        return instruction_name(self.names, self.to)

    def tasks(self, episode: int) -> list[str]:
        """Instruction of every step."""
        return self.dataset.recorded_instructions(episode)

    def entry(self) -> Any:
        """The source's entry in the target's names; a rate unlike the robot's goes into it."""
        entry = renamed_entry(self.dataset.entry, self.names, self.instruction)
        same = self.rate_hz == self.dataset.embodiment.rate_hz
        return entry.model_copy(update={"rate_hz": None if same else self.rate_hz})

    def facts(self, episode: int) -> dict[str, Any]:
        """Plain facts about the episode."""
        facts = dict(self.dataset.store.metadata(episode))
        if isinstance(self.dataset.store, LeRobotStore):
            facts = {key: value for key, value in facts.items() if key not in _LEROBOT_FACTS}
        elif self.to == "lerobot":
            facts = {f"recorded_{key}" if key in _LEROBOT_FACTS else key: facts[key] for key in facts}
        return {key: value for key, value in facts.items() if _is_plain(value)}


class _Pictures(Sequence[Picture]):
    """Images of an episode, read when asked for: the stored bytes if there are any, else pixels."""

    def __init__(self, store: StoredEpisodes, field: str, episode: int):
        self._store, self._field, self._episode = store, field, episode

    def __len__(self) -> int:
        return int(self._store.lengths[self._episode])

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < len(self):
            raise IndexError(step)
        if isinstance(self._store, EncodedImages):
            data = self._store.encoded_image(self._field, self._episode, step)
            if data is not None:
                return data
        return self._store.image(self._field, self._episode, step)


def _lerobot_writer(
    plan: _Plan, target: Path, images: ImageStorage, stack: ExitStack
) -> Callable[[int], None]:
    dataset, store = plan.dataset, plan.dataset.store
    writer = stack.enter_context(
        LeRobotWriter(target, dataset.embodiment, plan.entry(), plan.rate_hz, images, split=dataset.split)
    )

    def add(episode: int) -> None:
        writer.add(
            LeRobotEpisode(
                tasks=plan.tasks(episode),
                numbers={new: store.numbers(old, episode) for old, new in plan.fields(Kind.NUMBER).items()},
                images={new: _Pictures(store, old, episode) for old, new in plan.fields(Kind.IMAGE).items()},
                texts={new: store.texts(old, episode) for old, new in plan.fields(Kind.TEXT).items()},
                facts=plan.facts(episode),
            )
        )

    return add


def _rlds_writer(plan: _Plan, target: Path, stack: ExitStack) -> Callable[[int], None]:
    dataset, store = plan.dataset, plan.dataset.store
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists; choose another folder")
    stack.callback(_remove_if_empty, target)
    writer = stack.enter_context(RldsWriter(target.parent, target.name, dataset.embodiment))

    def add(episode: int) -> None:
        fields: dict[str, tuple[LeafSpec, Any]] = {plan.instruction: _texts(plan.tasks(episode))}
        for old, new in plan.fields(Kind.NUMBER).items():
            fields[new] = _numbers(store.numbers(old, episode))
        for old, new in plan.fields(Kind.TEXT).items():
            fields[new] = _texts(store.texts(old, episode))
        for old, new in plan.fields(Kind.IMAGE).items():
            fields[new] = _images(_Pictures(store, old, episode))
        for name, flags in _PLACE_FLAGS.items():
            fields.setdefault(name, _numbers(flags(int(store.lengths[episode]))))
        record = {f"steps/{name}": value for name, value in fields.items()}
        record |= {f"episode_metadata/{key}": _fact(value) for key, value in plan.facts(episode).items()}
        writer.add_fields(dataset.split, record, plan.entry())

    return add


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _numbers(values: np.ndarray) -> tuple[LeafSpec, np.ndarray]:
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return LeafSpec(Kind.NUMBER, values.shape[1:], values.dtype.name), values


def _texts(texts: Sequence[str]) -> tuple[LeafSpec, list[bytes]]:
    return LeafSpec(Kind.TEXT), [text.encode() for text in texts]


def _images(pictures: _Pictures) -> tuple[LeafSpec, list[bytes]]:
    data = [item if isinstance(item, bytes) else encode_png(item) for item in pictures]
    encoding = "jpeg" if data[0][:2] == JPEG else "png"
    return LeafSpec(Kind.IMAGE, decode_image(data[0], _RGB).shape, "uint8", encoding), data


def _fact(value: Any) -> tuple[LeafSpec, Any]:
    if isinstance(value, str):
        return _texts([value])
    return _numbers(np.asarray(value)[None])


def _is_plain(value: Any) -> bool:
    """Text, number, truth value, or a list of numbers: what both formats hold for an episode."""
    if isinstance(value, str):
        return True
    return (
        value is not None and isinstance(value, int | float | list) and np.asarray(value).dtype.kind in "biuf"
    )


def _can_be_carried(leaf: LeafSpec) -> bool:
    if leaf.optional or (leaf.kind is Kind.TEXT and leaf.shape):
        return False
    if leaf.kind is Kind.IMAGE:
        return leaf.dtype == "uint8" and leaf.shape[-1:] in ((3,), ())
    return leaf.kind in (Kind.NUMBER, Kind.TEXT)


def _instruction_field(dataset: MappedDataset) -> str | None:
    """The text field that holds every step's instruction, if there is one."""
    leaf = dataset.store.fields.get(dataset.entry.instruction)
    stored = dataset.entry.instruction_text is None and leaf is not None and leaf.kind is Kind.TEXT
    return dataset.entry.instruction if stored else None


def _derivable(store: LeRobotStore) -> Iterator[str]:
    """LeRobot's own columns that say nothing beyond the order of the steps; timestamps may, if uneven."""
    yield from (name for name in STANDARD if name != "timestamp")
    yield "task"
    steps = np.concatenate([np.arange(length) for length in store.lengths])
    if np.abs(store.column("timestamp") * store.rate_hz - steps).max() < 1e-2:
        yield "timestamp"
