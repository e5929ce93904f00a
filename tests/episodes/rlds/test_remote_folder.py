"""Datasets on fsspec filesystems: read by ranges, never copied."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader

from vla_adapt.episodes import EpisodeData, open_dataset
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds import index as index_module
from vla_adapt.episodes.rlds import remote_folder
from vla_adapt.episodes.storage import byte_source, remote_blocks
from vla_adapt.episodes.storage.cache_folder import BESIDE, CACHE_VARIABLE
from vla_adapt.episodes.storage.remote_blocks import RemoteBlocks
from vla_adapt.episodes.storage.stored import find_prefetcher
from vla_adapt.episodes.subset import EpisodeSubset


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, written: Path, tmp_path: Path) -> Iterator[str]:
    """The written dataset's version folder as a URL."""
    if request.param == "file":
        yield f"file://{written}"
        return
    memory = fsspec.filesystem("memory")
    target = f"/bucket{tmp_path}/written/1.0.0"
    for path in written.iterdir():
        memory.pipe_file(f"{target}/{path.name}", path.read_bytes())
    yield f"memory:/{target}"
    memory.rm(f"/bucket{tmp_path}", recursive=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_equal(dataset: MappedDataset, recordings: list[EpisodeData], local: MappedDataset) -> None:
    assert dataset.lengths.tolist() == [len(data) for data in recordings]
    for episode, data, same in zip(dataset, recordings, local, strict=True):
        np.testing.assert_array_equal(episode.action, data.action)
        np.testing.assert_array_equal(episode.extra("wide"), data.extra["wide"])
        assert episode.instruction == data.instruction
        for t in range(len(data)):
            for camera in episode.cameras:
                np.testing.assert_array_equal(episode.image(t, camera), same.image(t, camera))


@pytest.mark.parametrize("above", [0, 1, 2])
def test_reads_as_local_from_any_level(
    url: str, above: int, written: Path, recordings: dict[str, list[EpisodeData]], cache: Path
) -> None:
    dataset = open_dataset(url.rsplit("/", above)[0])
    assert not (written / BESIDE).exists()
    assert_equal(dataset, recordings["train"], open_dataset(written))
    copied = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    images = sum(path.stat().st_size for path in written.glob("*.tfrecord-*"))
    assert copied < images / 2


def test_the_index_is_cached_and_follows_the_data(
    url: str, written: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    build, built = index_module.build_index, []
    monkeypatch.setattr(index_module, "build_index", lambda *a, **k: built.append(1) or build(*a, **k))
    open_dataset(url)
    open_dataset(url)
    assert len(built) == 1
    filesystem, folder = fsspec.url_to_fs(url)
    name = sorted(filesystem.glob(f"{folder}/*-train.tfrecord-*"))[0]
    filesystem.pipe_file(name, filesystem.cat_file(name))
    open_dataset(url)
    assert len(built) == 2
    assert len(list(cache.glob("rlds/*/train-*"))) == 1


def test_forked_pickled_and_in_a_worker(url: str) -> None:
    dataset = open_dataset(url)
    wanted = dataset[3].image(2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[3].image(2), wanted)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for got in pool.map(_image_of, [dataset] * 3):
            np.testing.assert_array_equal(got, wanted)
    loader = DataLoader(
        _Images(dataset),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
    )
    for got, episode in zip(loader, dataset, strict=True):
        np.testing.assert_array_equal(got.numpy(), episode.image(1))


class _Images:
    """The second image of every episode."""

    def __init__(self, dataset: MappedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.dataset[i].image(1)


def _image_of(dataset: MappedDataset) -> np.ndarray:
    return dataset[3].image(2)


@pytest.mark.parametrize("history", [1, 2])
def test_a_loader_fetches_the_images_of_its_next_step_in_the_background(
    url: str, written: Path, history: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block that holds images and nothing else is asked for before it is needed."""
    monkeypatch.setattr(remote_blocks, "BLOCK", 1 << 12)
    monkeypatch.setattr(remote_blocks, "_OF_PROCESS", None)
    dataset, local = open_dataset(url), open_dataset(written)
    assert find_prefetcher(local) is None
    view = EpisodeSubset(dataset, [3, 0, 4])
    same = EpisodeSubset(local, [3, 0, 4])
    for episode in dataset:
        episode.extra("wide")
    fetch, fetched_by = RemoteBlocks._fetch, Counter[bool]()

    def counted(self: RemoteBlocks, *arguments: Any) -> None:
        fetched_by[threading.current_thread() is threading.main_thread()] += 1
        fetch(self, *arguments)

    monkeypatch.setattr(RemoteBlocks, "_fetch", counted)
    near, far = (Mixture([(data, 1.0)], 0, 2, history=history) for data in (same, view))
    for batch, wanted in zip(make_loader(far, 3, steps=4), make_loader(near, 3, steps=4), strict=True):
        for got, window in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(got["images"]["primary"], window["images"]["primary"])
    assert fetched_by[False] > 0
    assert fetched_by[True] == 0


def test_damage_is_named_by_its_url(url: str) -> None:
    filesystem, folder = fsspec.url_to_fs(url)
    name = sorted(filesystem.glob(f"{folder}/*-train.tfrecord-*"))[1]
    filesystem.pipe_file(name, filesystem.cat_file(name)[:-30])
    with pytest.raises(
        ValueError, match=r"(memory|file):/.*00001-of-00003: record 1 at byte \d+: file is tr"
    ):
        open_dataset(url)
    with pytest.warns(UserWarning, match="skipped 1 damaged of 5"):
        assert len(open_dataset(url, on_error="skip")) == 4
    filesystem.rm(name)
    with pytest.raises(ValueError, match=r"(memory|file):/.*00001-of-00003: shard is missing"):
        open_dataset(url)


def test_compressed_shards_are_refused(url: str) -> None:
    filesystem, folder = fsspec.url_to_fs(url)
    name = sorted(filesystem.glob(f"{folder}/*-train.tfrecord-*"))[0]
    filesystem.pipe_file(name, b"\x1f\x8b\x08" + bytes(100))
    with pytest.raises(ValueError, match="compressed shards cannot be streamed; copy the dataset to a disk"):
        open_dataset(url)


def test_nothing_there_and_unknown_protocols() -> None:
    with pytest.raises(ValueError, match=r"memory://nowhere/x: no features\.json here or below"):
        open_dataset("memory://nowhere/x")
    with pytest.raises(ValueError, match=r"nosuch://bucket/x: cannot be read: .*nosuch"):
        open_dataset("nosuch://bucket/x")


def test_a_bucket_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's client raises where others find nothing, and says little."""

    def find(*_: object) -> str:
        raise FileNotFoundError("b/nowhere/o")

    monkeypatch.setattr(remote_folder, "find_remote_version_folder", find)
    with pytest.raises(ValueError, match=r"memory://nowhere/x: nothing is there; wanted a dataset as tfds"):
        open_dataset("memory://nowhere/x")


def test_streaming_keeps_little(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexing a remote file holds a few blocks of it, not all."""
    monkeypatch.setattr(byte_source, "STREAM_BLOCK", 5000)
    dataset = open_dataset(f"file://{written}")
    assert_equal(dataset, [*_recorded(written)], open_dataset(written))


def _recorded(written: Path) -> Iterator[EpisodeData]:
    for episode in open_dataset(written):
        extra = {"wide": episode.extra("wide")}
        yield EpisodeData(action=episode.action, images={}, instruction=episode.instruction, extra=extra)
