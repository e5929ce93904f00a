"""Open the datasets of a mixture for the doctor: what is damaged becomes a finding, not the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_adapt.episodes.doctor.doctor_finding import Finding
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter, filter_episodes
from vla_adapt.episodes.mixing.mixture_spec import Source
from vla_adapt.episodes.opening import open_dataset
from vla_adapt.episodes.provenance import stand_ins
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.strided import StridedDataset
from vla_adapt.episodes.subset import EpisodeSubset


@dataclass
class Patients:
    """Datasets with a name each ("bridge_dataset/train"), and a finding for each that could not be opened.

    They hold all recorded steps; `strides` say every how manyth of them will be read.
    """

    names: list[str] = field(default_factory=list)
    datasets: list[EpisodeDataset] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def open_patients(sources: Sequence[Source]) -> Patients:
    """Open every source, and the split it is judged on as a dataset of its own.

    NaN is let through, damaged records are left out and remembered: finding them is the doctor's work.
    """
    found = Patients()
    for source in sources:
        splits = [source.split, *([source.judged_split] if source.judged_split else [])]
        for split in dict.fromkeys(splits):
            try:
                dataset = _open(source, split)
            except (ValueError, OSError) as error:
                found.findings.append(_not_opened(f"{source.path}/{split}", error))
                continue
            name = f"{dataset.name}/{split}"
            found.names.append(name if name not in found.names else f"{name} ({source.path})")
            found.datasets.append(dataset)
            found.strides.append(source.stride)
            found.findings += _stand_ins(found.names[-1], dataset)
    return found


def _open(source: Source, split: str) -> EpisodeDataset:
    path = source.path if "://" in source.path else Path(source.path).expanduser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is skipped is told as a finding
        dataset: EpisodeDataset = open_dataset(
            path, embodiment=source.embodiment, split=split, entry=source.entry, cache_dir=source.cache_dir,
            check=False, on_error="skip", stand_in_cameras=source.stand_in_cameras,
        )  # fmt: skip
    wanted = source.filter if split == source.split else source.filter.without_ids()
    read = dataset if source.stride == 1 else StridedDataset(dataset, source.stride)
    if wanted != EpisodeFilter():
        dataset = EpisodeSubset(dataset, filter_episodes(read, wanted)[0])
    if source.episodes is not None and split == source.split:
        dataset = EpisodeSubset(dataset, range(min(source.episodes, len(dataset))))
    return dataset


def _stand_ins(name: str, dataset: EpisodeDataset) -> list[Finding]:
    return [
        Finding(
            "camera_stand_in", "note", name,
            f"it has no camera '{missing}': images of '{other}' are given for it, as stand_in_cameras says",
            f"fine where that is what it shall look through; who serves it sends images of '{other}' as "
            f"'{missing}'",
        )
        for missing, other in stand_ins(dataset).items()
    ]  # fmt: skip


def _not_opened(name: str, error: Exception) -> Finding:
    advice = "repair what the message names, then ask again"
    return Finding("unreadable", "error", name, f"cannot be opened: {error}", advice)
