"""Features of a frozen backbone, made once for every step of the data, so that training reads no image.

They are kept under a key of all they depend on: base, processing of images and text, head, data, code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch.utils.data import DataLoader, Dataset

from vla_adapt.adaptation.method import Frozen
from vla_adapt.episodes.episode_facts import observations
from vla_adapt.episodes.measuring.statistics_cache import dataset_fingerprint, dataset_folder
from vla_adapt.episodes.provenance import opened_as
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.storage.cache_folder import cache_places, first_writable
from vla_adapt.policy.backbone import look
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.progress_bar import progress_bar
from vla_adapt.training.compatibility import why_uncached
from vla_adapt.training.feature_store import PIECE_BYTES, FeatureStore
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Setting

PREFIX = "features-"
_ROWS = 32  # in one pass of the backbone


def use_features(accelerator: Accelerator, ranks: Ranks, setting: Setting) -> str | None:
    """Make the features that are missing, all processes together, and let `setting` read them.

    Returns:
        A note on what is read, or why nothing is; None where the backbone trains.

    Raises:
        ValueError: the disk is full, or the processes do not share the folder.
    """
    method = setting.recipe.adaptation
    if not isinstance(method, Frozen) or why_uncached(setting.recipe) is not None:
        return None
    datasets = setting.mixture.datasets
    remote = [dataset.name for dataset in datasets if dataset_folder(dataset) is None]
    if remote:
        return f"{remote[0]} is not on a local disk: the frozen backbone runs in every step"
    stores = ranks.main_first(lambda: [_store(dataset, setting, method) for dataset in datasets])
    missing = ranks.on_main(lambda: [store.missing() for store in stores])
    ranks.on_main(lambda: [store.check_space() for store in stores])
    if any(missing):
        setting.learner.to(accelerator.device).eval()
        ranks.attempt(lambda: _fill(accelerator, ranks, setting, stores, missing))
        ranks.attempt(lambda: _check_shared(stores))
    setting.builder.summaries = Summaries(datasets, stores)
    setting.mixture = setting.mixture.without_images()
    size = sum(store.total_bytes for store in stores) / 1e6
    return f"features of the frozen backbone: {size:.1f} MB, {stores[0].folder.parent}/{PREFIX}*"


class Summaries:
    """Stored summaries of the datasets of a mixture, for `BatchBuilder.summaries`."""

    def __init__(self, datasets: Sequence[EpisodeDataset], stores: list[FeatureStore]) -> None:
        self._stores = stores
        self._first = [_first_rows(dataset).tolist() for dataset in datasets]

    def __call__(self, samples: Sequence[tuple[int, int, int]]) -> Float[torch.Tensor, "B N D"]:
        """What the backbone saw in each (dataset, episode, step), float32."""
        found = np.empty((len(samples), *self._stores[0].shape), np.float16)
        for place, (dataset, episode, step) in enumerate(samples):
            found[place] = self._stores[dataset].row(self._first[dataset][episode] + step)
        return torch.from_numpy(found).float()


def _first_rows(dataset: EpisodeDataset) -> np.ndarray:
    """Row of the first step of every episode, and the number of all rows."""
    return np.concatenate([[0], np.cumsum(dataset.lengths)])


def _store(dataset: EpisodeDataset, setting: Setting, method: Frozen) -> FeatureStore:
    """Where the features of a dataset are, or will be."""
    head = _head(setting)
    folder = dataset_folder(dataset)
    assert folder is not None
    cameras = 1 + len(setting.recipe.policy.more_cameras)
    shape = (cameras * head.config.grid**2 + 1, head.width)
    described = describe(dataset, setting, shape)
    name = PREFIX + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
    places = cache_places(folder, method.cache_dir, kind="features")
    place = next((place for place in places if (place / name).is_dir()), None) or first_writable(places)
    return FeatureStore(place / name, int(dataset.lengths.sum()), shape, PIECE_BYTES)


def describe(dataset: EpisodeDataset, setting: Setting, shape: tuple[int, int]) -> dict[str, str]:
    """All that the features of a dataset depend on."""
    model, builder, opened = setting.learner.model, setting.builder, opened_as(dataset)
    assert opened is not None
    tokenizer = builder.tokenizer.tokenizer.to_str()
    return {
        "base": setting.base_fingerprint,
        "precision": str(model.dtype),
        "image": json.dumps(builder.preprocessor.to_dict()),
        "observation": setting.recipe.observation.model_dump_json(),
        "text": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "shape": str((*shape, PIECE_BYTES)),
        "data": dataset_fingerprint(dataset),
        "image_scale": str(opened.image_scale),
        "code": _code(),
    }


@cache
def _code() -> str:
    """Digest of the code between an image and a summary."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in sorted([*package.glob("policy/*.py"), *package.glob("randomization/*.py")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _head(setting: Setting) -> SummaryHead:
    """Any robot's: they all look at the backbone alike."""
    head = next(iter(setting.learner.heads.values()))
    assert isinstance(head, SummaryHead)
    return head


def _check_shared(stores: list[FeatureStore]) -> None:
    """Raise ValueError when this process does not see what the others wrote."""
    for store in stores:
        if store.missing():
            raise ValueError(
                f"{store.folder}: features that another process wrote are not there; set "
                "adaptation.cache_dir to a folder that all machines of the run share"
            )


@dataclass(frozen=True)
class _Part:
    """Some rows of a piece of a store that is being made."""

    dataset: int
    piece: range
    rows: range


class _Looks(Dataset[tuple[_Part, PolicyBatch]]):
    """Batches of observations, without state and action; read in loader processes."""

    def __init__(self, parts: list[_Part], datasets: Sequence[EpisodeDataset], builder: BatchBuilder) -> None:
        self._parts, self._datasets, self._builder = parts, datasets, builder
        self._first = [_first_rows(dataset) for dataset in datasets]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> tuple[_Part, PolicyBatch]:
        part = self._parts[index]
        dataset, first = self._datasets[part.dataset], self._first[part.dataset]
        cameras = (self._builder.image_key, *self._builder.more_cameras)
        seen = []
        for row in part.rows:
            number = int(np.searchsorted(first, row, side="right")) - 1
            episode, step = observations(dataset, number), row - int(first[number])
            there = [camera for camera in cameras if camera in episode.cameras]
            images = {camera: episode.image(step, camera) for camera in there}
            seen.append({"images": images, "prompt": episode.instruction_at(step)})
        return part, self._builder.observations(seen, [dataset.embodiment.name] * len(seen))


def _fill(
    accelerator: Accelerator,
    ranks: Ranks,
    setting: Setting,
    stores: list[FeatureStore],
    missing: list[list[range]],
) -> None:
    """Make this process's share of the missing pieces."""
    pieces = [(number, piece) for number, each in enumerate(missing) for piece in each][
        ranks.rank :: ranks.world
    ]
    parts = [
        _Part(number, piece, piece[start : start + _ROWS])
        for number, piece in pieces
        for start in range(0, len(piece), _ROWS)
    ]
    looks = _Looks(parts, setting.mixture.datasets, setting.builder)
    loader = DataLoader(looks, batch_size=None, collate_fn=_as_is, num_workers=setting.recipe.train.workers)  # type: ignore[arg-type]
    done: list[np.ndarray] = []
    total = sum(len(part.rows) for part in parts)
    with progress_bar("frozen backbone", total, "steps", keep=True, shown=ranks.is_main) as bar:
        for part, batch in loader:
            with accelerator.autocast():
                done.append(_summaries(setting.learner.model, _head(setting), batch.to(accelerator.device)))
            if part.rows.stop == part.piece.stop:
                stores[part.dataset].write(part.piece, np.concatenate(done))
                done = []
            bar.advance(len(part.rows))


def _as_is(item: tuple[_Part, PolicyBatch]) -> tuple[_Part, PolicyBatch]:
    return item


@torch.no_grad()
def _summaries(model: OpenVLA, head: SummaryHead, batch: PolicyBatch) -> Float[np.ndarray, "B N D"]:
    """What the backbone saw."""
    return head.summarize(model, batch, look(model, batch, head.ask(model, batch))).cpu().numpy()
