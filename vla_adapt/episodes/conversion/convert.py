"""Convert a dataset between RLDS and LeRobot: every field as recorded, under the other format's names.

Nothing is mapped or transformed on the way: the entry, the embodiment and the dataset's lasting name travel
along, so that the result opens as the source did and holds out the same episodes. What the target's format
cannot hold is told: depth, ragged fields, 64-bit floats in RLDS, empty episodes in LeRobot, ...
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from vla_adapt.episodes.conversion.convert_facts import fact_field
from vla_adapt.episodes.conversion.convert_plan import Plan
from vla_adapt.episodes.lerobot.lerobot_columns import JPEG, encode_png
from vla_adapt.episodes.lerobot.lerobot_writer import ImageStorage, LeRobotEpisode, LeRobotWriter, Picture
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.opening import open_dataset, split_episodes
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.image_codec import check_shape, decode_image, image_size
from vla_adapt.episodes.storage.stored import StoredEpisodes
from vla_adapt.progress_bar import progress_bar

_RGB = LeafSpec(Kind.IMAGE, (-1, -1, 3), "uint8")
# What an RLDS step tells of its place in the episode, where the source does not.
_PLACE_FLAGS: Mapping[str, Callable[[int], np.ndarray]] = {
    "is_first": lambda steps: np.arange(steps) == 0,
    "is_last": lambda steps: np.arange(steps) == steps - 1,
    "is_terminal": lambda steps: np.arange(steps) == steps - 1,
}

# Writes one episode of a split.
Add = Callable[[MappedDataset, int], None]


@runtime_checkable
class EncodedImages(Protocol):
    """A store that can give an image's stored bytes; None where a frame has none of its own (video)."""

    def encoded_image(self, field: str, episode: int, step: int) -> bytes | None: ...


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        episodes: split -> how many.
        left_behind: what of the source the target lacks, or has less exactly: one line each.
    """

    episodes: dict[str, int]
    left_behind: list[str]


def convert_dataset(
    source: str | Path,
    target: Path,
    to: Literal["rlds", "lerobot"],
    *,
    embodiment: str | None = None,
    entry: str | None = None,
    splits: Sequence[str] = (),
    images: ImageStorage = "image",
) -> Conversion:
    """Write `source` (RLDS, LeRobot or HDF5) as a new dataset in the folder `target`.

    Warns, before anything is written, of all that the target will lack.

    Args:
        source: as for `open_dataset`.
        target: must not exist; appears when everything is written. RLDS goes to `target`/1.0.0.
        to: format to write.
        embodiment: the robot, where the source does not say.
        entry: how fields map onto it, where the source does not say: a catalogue name or a YAML file.
        splits: which ones; default all, but of overlapping ones (HDF5 filter keys) the first.
        images: "image": pixels are kept exactly, JPEG and PNG as the very bytes stored, video frames as PNG.
            "video" (LeRobot only): mp4, smaller and lossy.

    Raises:
        ValueError: the source does not open, the target exists, or an episode cannot be stored.
    """
    if to == "rlds" and images == "video":
        raise ValueError("RLDS holds no video; use images='image', or convert to lerobot")
    names, beside = _chosen_splits(source, entry, splits)
    for name in names:
        if to == "rlds" and not name.isidentifier():
            raise ValueError(
                f"split '{name}': RLDS wants letters, digits and underscores; leave it out (--split)"
            )
    datasets = [open_dataset(source, embodiment=embodiment, entry=entry, split=name) for name in names]
    plan = Plan(datasets, to)
    left_behind = [*beside, *plan.left_behind]
    if left_behind:
        told = f"{datasets[0].name}: left behind in {to}: {'; '.join(left_behind)}"
        warnings.warn(told, stacklevel=2)
    total = sum(len(episodes) for episodes in plan.kept)
    bar = progress_bar(f"converting {datasets[0].name}", total, "episodes")
    with ExitStack() as stack, bar as progress:
        add = (
            _lerobot_writer(plan, target, images, stack)
            if to == "lerobot"
            else _rlds_writer(plan, target, stack)
        )
        for dataset, episodes in zip(datasets, plan.kept, strict=True):
            for episode in episodes:
                try:
                    add(dataset, episode)
                except ValueError as error:
                    where = f"{dataset.name}: episode {dataset.episode_id(episode)}"
                    raise ValueError(f"{where}: cannot be converted: {error}") from None
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise ValueError(f"{target} cannot be written: {error.strerror}") from None
                progress.advance()
    return Conversion(dict(zip(names, map(len, plan.kept), strict=True)), left_behind)


def _chosen_splits(
    source: str | Path, entry: str | None, wanted: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The splits to convert, "train" first, and what is in none of them."""
    if wanted:
        return list(dict.fromkeys(wanted)), []
    episodes, total = split_episodes(source, entry)
    taken = np.zeros(total, bool)
    names, beside = [], []
    # "all" last: it is a view of the others.
    for name in sorted(episodes, key=lambda name: (name != "train", name == "all")):
        shared = int(taken[episodes[name]].sum())
        if not shared:
            names.append(name)
            taken[episodes[name]] = True
        elif name != "all":
            beside.append(f"split '{name}': {shared} of its {len(episodes[name])} episodes are in others too")
    if not taken.all():
        beside.append(f"episodes in no split of {', '.join(names)}: {total - int(taken.sum())}")
    return names, beside


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


def _lerobot_writer(plan: Plan, target: Path, images: ImageStorage, stack: ExitStack) -> Add:
    source = plan.splits[0]
    writer = stack.enter_context(
        LeRobotWriter(
            target,
            source.embodiment,
            plan.entry(),
            plan.rate_hz,
            images,
            lasting_name=source.lasting_name,
            fact_examples=plan.fact_examples(),
        )
    )

    def add(dataset: MappedDataset, episode: int) -> None:
        store = dataset.store
        numbers, pictures, texts = (plan.of_kind(kind) for kind in (Kind.NUMBER, Kind.IMAGE, Kind.TEXT))
        writer.add(
            LeRobotEpisode(
                tasks=dataset.recorded_instructions(episode),
                numbers={new: plan.numbers(dataset, old, episode) for old, new in numbers.items()},
                images={new: _Pictures(store, old, episode) for old, new in pictures.items()},
                texts={new: store.texts(old, episode) for old, new in texts.items()},
                facts=plan.facts(dataset, episode),
            ),
            dataset.split,
        )

    return add


def _rlds_writer(plan: Plan, target: Path, stack: ExitStack) -> Add:
    source = plan.splits[0]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists; choose another folder")
    stack.callback(_remove_if_empty, target)
    name = re.sub(r"\W|^(?=\d)", "_", source.name, flags=re.ASCII)
    lasting = None if source.lasting_name == name else source.lasting_name
    writer = stack.enter_context(
        RldsWriter(target.parent, name, source.embodiment, folder=target.name, lasting_name=lasting)
    )
    entry = plan.entry()
    image_leaves = {field: _image_leaf(plan, field) for field in plan.of_kind(Kind.IMAGE)}

    def add(dataset: MappedDataset, episode: int) -> None:
        store = dataset.store
        fields: dict[str, tuple[LeafSpec, Any]] = {
            plan.instruction: _texts(dataset.recorded_instructions(episode))
        }
        for old, new in plan.of_kind(Kind.NUMBER).items():
            fields[new] = _numbers(plan.numbers(dataset, old, episode))
        for old, new in plan.of_kind(Kind.TEXT).items():
            fields[new] = _texts(store.texts(old, episode))
        for old, new in plan.of_kind(Kind.IMAGE).items():
            fields[new] = _images(_Pictures(store, old, episode), image_leaves[old])
        for flag, values in _PLACE_FLAGS.items():
            fields.setdefault(flag, _numbers(values(int(store.lengths[episode]))))
        record = {f"steps/{name}": value for name, value in fields.items()}
        facts = plan.facts(dataset, episode)
        record |= {f"episode_metadata/{key}": fact_field(value) for key, value in facts.items()}
        writer.add_fields(dataset.split, record, entry)

    return add


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _numbers(values: np.ndarray) -> tuple[LeafSpec, np.ndarray]:
    return LeafSpec(Kind.NUMBER, values.shape[1:], values.dtype.name), values


def _texts(texts: Sequence[str]) -> tuple[LeafSpec, list[bytes]]:
    return LeafSpec(Kind.TEXT), [text.encode() for text in texts]


def _image_leaf(plan: Plan, field: str) -> LeafSpec:
    """As the field's first image is; sizes that the source says vary may vary."""
    for dataset in plan.splits:
        for episode in np.flatnonzero(dataset.store.lengths).tolist()[:1]:
            first = _encoded(_Pictures(dataset.store, field, episode)[0])
            declared = dataset.store.fields[field].shape
            sizes = zip(declared, decode_image(first, _RGB).shape, strict=False)
            shape = tuple(-1 if wanted == -1 else size for wanted, size in sizes) or _RGB.shape
            return LeafSpec(Kind.IMAGE, shape, "uint8", "jpeg" if first[:2] == JPEG else "png")
    return _RGB


def _images(pictures: Sequence[Picture], leaf: LeafSpec) -> tuple[LeafSpec, list[bytes]]:
    """Encoded images; refuses one of another size than `leaf` says."""
    data = [_encoded(picture) for picture in pictures]
    for image in data:
        check_shape((*image_size(image), 3), leaf)
    return leaf, data


def _encoded(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else encode_png(picture)
