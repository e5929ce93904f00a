"""Open what a mixture's specification names: train and held-out episodes, weights, and what was left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.mixing.balance import Balance, balanced_weights
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter, filter_episodes, told
from vla_adapt.episodes.mixing.episode_weights import read_episode_weights, weights_of
from vla_adapt.episodes.mixing.held_out import is_held_out
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.mixture_spec import NAMED_HELD_OUT, MixtureSpec, NamedMixture, Source
from vla_adapt.episodes.opening import open_dataset
from vla_adapt.episodes.provenance import opened_as, stand_ins
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.storage.byte_source import is_url
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset

# Damaged places that the notes on a dataset list.
_LISTED = 20


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture, opened.

    Attributes:
        source: what was asked for.
        train: episodes to draw from.
        held_out: episodes to judge on, or None.
        episode_weights: [E] of the train episodes, above 0, or None.
        notes: what of the dataset was left out, damaged places too, one line each. (Images that something
            stands in for are met only when they are drawn, and told then, see `mapped.MappedDataset`.)
    """

    source: Source
    train: EpisodeDataset
    held_out: EpisodeDataset | None
    episode_weights: np.ndarray | None
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps that can be drawn."""
        return int(self.train.lengths.sum())


@dataclass(frozen=True)
class OpenedMixture:
    """The datasets of a mixture; `shares` are what a dataset's part of the samples is proportional to."""

    parts: list[Part]
    shares: list[float]
    open_blocks: int | None
    notes: list[str]

    def draw(self, seed: int, horizon: int, **options: Any) -> Mixture:
        """Samples of the train episodes; `options` are those of `mixture.Mixture`."""
        return Mixture(
            [(part.train, share) for part, share in zip(self.parts, self.shares, strict=True)],
            seed,
            horizon,
            episode_weights=[part.episode_weights for part in self.parts],
            open_blocks=self.open_blocks,
            **options,
        )


def open_mixture(spec: MixtureSpec, full_size: bool = False) -> OpenedMixture:
    """Open all datasets of a specification; with `full_size` whatever their `image_scale`, for judging.

    Raises:
        ValueError: a dataset that is missing, damaged or left without episodes, each named.
    """
    sources, balance, notes = resolve(spec)
    if full_size:
        sources = [source.model_copy(update={"image_scale": None}) for source in sources]
    parts = [open_source(source) for source in sources]
    shares = balanced_weights(
        [part.source.weight for part in parts],
        [part.steps for part in parts],
        [part.train.embodiment.name for part in parts],
        balance,
    )
    notes += [note for part in parts for note in part.notes]
    notes += _idle_stand_ins(spec, parts)
    if balance == "dataset" and len({source.weight for source in sources}) > 1:
        notes.append("balance 'dataset' gives all datasets the same share: their weights have no effect")
    return OpenedMixture(parts, shares, spec.open_blocks if spec.order == "shards" else None, notes)


def resolve(spec: MixtureSpec) -> tuple[list[Source], Balance, list[str]]:
    """The sources of a specification, how to balance them, and what was left out.

    Raises:
        ValueError: datasets of a named mixture that are not in its folder, all of them listed.
    """
    if spec.named is None or spec.folder is None:
        return list(spec.sources), spec.balance or "none", []
    named = NamedMixture.load(spec.named)
    lines = named.lines()
    paths = {name: f"{spec.folder.rstrip('/')}/{name}" for name in lines}
    missing = [name for name in lines if not _exists(paths[name])]
    notes = [f"{spec.named}: not in {spec.folder} and left out: {', '.join(missing)}"] if missing else []
    if missing and (spec.missing == "error" or len(missing) == len(lines)):
        raise ValueError(
            f"mixture '{spec.named}': {len(missing)} of {len(lines)} datasets are not in {spec.folder}: "
            f"{', '.join(missing)}; download them there, or set missing: skip to do without"
        )
    defaults = spec.defaults
    if defaults.held_out is None and defaults.held_out_split is None:
        defaults = defaults.model_copy(update={"held_out": NAMED_HELD_OUT})
    given = named.stand_in_cameras | defaults.stand_in_cameras
    defaults = defaults.model_copy(update={"stand_in_cameras": given})
    sources = [
        Source(**line.over(defaults), path=paths[name], entry=name, weight=line.weight)
        for name, line in lines.items()
        if name not in missing
    ]
    return [*sources, *spec.sources], spec.balance or named.balance, notes


def open_source(source: Source) -> Part:
    """Open one dataset and part it into train and held-out episodes.

    Raises:
        ValueError: it cannot be opened, has no such split or episodes, or nothing is left to train on.
    """
    dataset = open_split(source, source.split, source.image_scale)
    notes = [*_damage(dataset), *stand_in_notes(dataset)]
    train, filtered = _chosen(dataset, source.filter)
    notes += filtered
    held_out = _judged(source, notes)
    if source.held_out is not None:
        train, held_out = _parted(train, source, notes)
    if source.episodes is not None:
        if source.episodes > len(train):
            raise ValueError(
                f"{dataset.name}: asked for the first {source.episodes} episodes, it has {len(train)}"
            )
        train = EpisodeSubset(train, range(source.episodes))
    if not train.lengths.sum():
        raise ValueError(f"{dataset.name}: no steps to draw from; leave it out of the mixture")
    weights = None
    if source.episode_weights is not None:
        given = read_episode_weights(source.episode_weights)
        weights, strangers = weights_of(train, given, source.episode_weights)
        if strangers:
            notes.append(
                f"{dataset.name}: {strangers} names in {source.episode_weights} are no episodes to train on"
            )
        # As with a filter: what is never drawn is not measured either.
        drawn = np.flatnonzero(weights)
        if len(drawn) < len(weights):
            notes.append(f"{dataset.name}: {len(weights) - len(drawn)} episodes of weight 0 are left out")
            train, weights = EpisodeSubset(train, drawn), weights[drawn]
    return Part(source, train, held_out, weights, tuple(notes))


def open_split(
    source: Source, split: str, image_scale: int | None = None, check: bool = True
) -> EpisodeDataset:
    """All episodes of one split of a source, every `stride`-th step of them.

    Args:
        source: which dataset, and how to read it.
        split: which split.
        image_scale: images at least so large, instead of at full size.
        check: refuse NaN.
    """
    dataset = open_dataset(
        _place(source.path),
        embodiment=source.embodiment,
        split=split,
        entry=source.entry,
        cache_dir=source.cache_dir,
        verify_crc=source.verify_crc,
        check=check,
        on_error=source.on_error,
        stand_in_cameras=source.stand_in_cameras,
        verify_images=source.verify_images,
        image_scale=image_scale,
    )
    return dataset if source.stride == 1 else StridedDataset(dataset, source.stride)


def stand_in_notes(dataset: EpisodeDataset) -> list[str]:
    """Which of a dataset's cameras are given for which that it lacks."""
    return [
        f"{dataset.name}: it has no camera '{name}'; its camera '{other}' stands in"
        for name, other in stand_ins(dataset).items()
    ]


def _idle_stand_ins(spec: MixtureSpec, parts: Sequence[Part]) -> list[str]:
    """Notes on stand-ins that somebody asked for and no dataset took."""
    asked = [spec.defaults.stand_in_cameras, *(source.stand_in_cameras for source in spec.sources)]
    used = [stand_ins(part.train) for part in parts]
    return [
        f"stand_in_cameras: no dataset lacks camera '{name}' and has '{other}', so it has no effect"
        for name, other in dict.fromkeys(pair for each in asked for pair in each.items())
        if not any(each.get(name) == other for each in used)
    ]


def _damage(dataset: EpisodeDataset) -> list[str]:
    """How many damaged episodes were left out when the dataset was opened, and why."""
    opened = opened_as(dataset)
    texts = [] if opened is None else opened.skipped
    if opened is None or not texts:
        return []
    more = [f"and {len(texts) - _LISTED} more; data doctor lists them"] if len(texts) > _LISTED else []
    where = f"{opened.name}/{opened.split}"
    return [
        f"{where}: {opened.lost} of {opened.lost + len(opened)} episodes are damaged and left out:",
        *(f"{where}: {text}" for text in [*texts[:_LISTED], *more]),
    ]


def _judged(source: Source, notes: list[str]) -> EpisodeDataset | None:
    """The split to judge on, if any; adds to `notes` what of it is damaged."""
    if source.judged_split is None:
        return None
    try:
        dataset = open_split(source, source.judged_split)
        notes += _damage(dataset)
        return _chosen(dataset, source.filter.without_ids())[0]
    except ValueError as error:
        raise ValueError(
            f"held_out_split: {error}; an empty one holds nothing out, `held_out: 0.1` beside the path "
            f"(--set mixture.0.held_out=0.1) a tenth of the episodes of '{source.split}'"
        ) from None


def _chosen(dataset: EpisodeDataset, wanted: EpisodeFilter) -> tuple[EpisodeDataset, list[str]]:
    """The episodes that count, and a note when some do not."""
    if wanted == EpisodeFilter():
        return dataset, []
    index, gone = filter_episodes(dataset, wanted)
    notes = [
        f"{dataset.name}: the filter leaves out {gone.total()} of {len(dataset)} episodes ({told(gone)})"
    ]
    return EpisodeSubset(dataset, index), notes if gone else []


def _parted(
    dataset: EpisodeDataset, source: Source, notes: list[str]
) -> tuple[EpisodeDataset, EpisodeDataset | None]:
    """Train and held-out episodes by hash; None when the hash holds none of so few episodes out."""
    fraction = source.held_out
    assert fraction is not None
    names = (episode_facts.stable_name(dataset, i) for i in range(len(dataset)))
    out = np.array([is_held_out(*name, fraction) for name in names], bool)
    if out.all():
        raise ValueError(
            f"{dataset.name}: held_out {fraction} leaves none of {len(out)} episodes to train on; lower it, "
            "or hold out a split"
        )
    if not out.any():
        notes.append(f"{dataset.name}: held_out {fraction} holds out none of {len(out)} episodes")
        return dataset, None
    judged = dataset if source.image_scale is None else _at_full_size(source)
    return EpisodeSubset(dataset, np.flatnonzero(~out)), EpisodeSubset(judged, np.flatnonzero(out))


def _at_full_size(source: Source) -> EpisodeDataset:
    """The episodes that count once more; what is wrong with them was told when they were first opened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _chosen(open_split(source, source.split), source.filter)[0]


def _place(path: str) -> str | Path:
    return path if is_url(path) else Path(path).expanduser()


def _exists(path: str) -> bool:
    files, place = fsspec.url_to_fs(str(_place(path)))
    return files.exists(place)
