"""Parity with h5py: random layouts, types, chunks and filters, written by h5py, read back equal."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store
from vla_adapt.episodes.storage.feature_spec import Kind
from vla_adapt.episodes.storage.image_codec import decode_image

NUMBERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float16"]
NUMBERS += ["float32", "float64"]
PLACES = {"robomimic": "data/demo_{}", "top": "traj_{}", "aloha": "/"}


@dataclass
class Maker:
    """A random layout: what is stored of every episode, and the same values to compare with."""

    seed: int
    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random, self.rng = random.Random(self.seed), np.random.default_rng(self.seed)

    def write(self, folder: Path) -> list[dict[str, Any]]:
        """Episodes in the order they must be read, as field -> the values of all steps."""
        self.place = self.random.choice(list(PLACES))
        self.makers = {"actions": self._numbers("float64", (7,))}
        for number in range(self.random.randrange(1, 6)):
            kind = self.random.choice([self._number, self._number, self._image, self._encoded, self._text])
            group = self.random.choice(["", "obs/", "observations/images/"])
            self.makers[f"{group}field{number}"] = kind()
        count = self.random.randrange(1, 13)
        episodes = [self._episode() for _ in range(count)]
        per_file = 1 if self.place == "aloha" else self.random.randrange(1, count + 1)
        for start in range(0, count, per_file):
            with h5py.File(folder / f"part_{start // per_file}.hdf5", "w") as file:
                for number, episode in enumerate(episodes[start : start + per_file]):
                    group = file.require_group(PLACES[self.place].format(number))
                    for name, values in episode.items():
                        self._store(group, name, values)
        return episodes

    def _episode(self) -> dict[str, Any]:
        steps = self.random.randrange(1, 9)
        return {name: make(steps) for name, make in self.makers.items()}

    def _number(self) -> Any:
        dims = self.random.randrange(3)
        shape = tuple(self.random.randrange(1, 12) for _ in range(dims))
        name = self.random.choice(NUMBERS)
        # A row of bytes may be an encoded image, and [h, w, 1 or 3] bytes are one: `_encoded`, `_image`.
        return self._numbers("int16" if name == "uint8" and dims else name, shape)

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Any:
        def make(steps: int) -> np.ndarray:
            if name in ("bool", "float16", "float32", "float64"):
                return (self.rng.normal(size=(steps, *shape)) * 3).astype(name)
            info = np.iinfo(name)
            return self.rng.integers(info.min, info.max, (steps, *shape), dtype=name, endpoint=True)

        return make

    def _image(self) -> Any:
        size = (*self.rng.integers(2, 9, 2).tolist(), self.random.choice([1, 3]))
        return lambda steps: self.rng.integers(0, 256, (steps, *size), dtype=np.uint8)

    def _encoded(self) -> Any:
        """JPEG or PNG bytes of images of changing size, stored as text, ragged or padded rows."""
        form, stored = self.random.choice(["jpeg", "png"]), self.random.choice(["ragged", "padded"])

        def make(steps: int) -> tuple[str, list[bytes]]:
            sizes = self.rng.integers(8, 20, (steps, 2))
            images = [self.rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
            return stored, [_bytes(image, form) for image in images]

        return make

    def _text(self) -> Any:
        once = self.random.random() < 0.5
        return lambda steps: [f"wörd {self.random.randrange(99)}" for _ in range(1 if once else steps)]

    def _store(self, group: h5py.Group, name: str, values: Any) -> None:
        if isinstance(values, tuple):
            kind, rows = values
            if kind == "ragged":
                data = group.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.uint8))
                for number, row in enumerate(rows):
                    data[number] = np.frombuffer(row, np.uint8)
                return
            values = np.zeros((len(rows), max(map(len, rows)) + self.random.randrange(9)), np.uint8)
            for padded, row in zip(values, rows, strict=True):
                padded[: len(row)] = np.frombuffer(row, np.uint8)
        if isinstance(values, list):
            group.create_dataset(name, data=values, dtype=h5py.string_dtype())
            return
        filters: dict[str, Any] = self.random.choice(
            [{}, {"chunks": True}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True},
             {"fletcher32": True}]
        )  # fmt: skip
        group.create_dataset(name, data=values, **filters)


def _bytes(image: np.ndarray, form: str) -> bytes:
    if form == "jpeg":
        return simplejpeg.encode_jpeg(image, 90)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def assert_read(store: Hdf5Store, name: str, episode: int, wanted: Any) -> None:
    """One field of all steps of an episode, as h5py was given it."""
    leaf, where = store.fields[name], f"{name} of episode {episode}"
    steps = int(store.lengths[episode])
    if isinstance(wanted, list):
        assert store.texts(name, episode) == (wanted * steps if len(wanted) == 1 else wanted), where
    elif isinstance(wanted, tuple):
        for step, data in enumerate(wanted[1]):
            np.testing.assert_array_equal(store.image(name, episode, step), decode_image(data, leaf), where)
    elif leaf.kind is Kind.IMAGE:
        pixels = np.broadcast_to(wanted, (*wanted.shape[:-1], 3))
        for step in range(steps):
            np.testing.assert_array_equal(store.image(name, episode, step), pixels[step], where)
    else:
        got = store.numbers(name, episode)
        np.testing.assert_array_equal(
            got, wanted.astype(np.float32) if wanted.dtype == np.float64 else wanted
        )
        assert got.dtype == ("float32" if wanted.dtype == np.float64 else wanted.dtype), where


@pytest.mark.parametrize("seed", range(25))
def test_random_layouts_read_as_written(seed: int, tmp_path: Path) -> None:
    maker = Maker(seed)
    episodes = maker.write(tmp_path)
    required = [
        "actions",
        *(name for name in maker.makers if maker.random.random() < 0.5 and name != "actions"),
    ]
    required = [name for name in required if not isinstance(episodes[0][name], list)]
    store = Hdf5Store(tmp_path, required=required)
    assert store.lengths.tolist() == [len(episode["actions"]) for episode in episodes]
    assert set(maker.makers) <= set(store.fields)
    for number in maker.random.sample(range(len(episodes)), len(episodes)):
        for name, wanted in episodes[number].items():
            assert_read(store, name, number, wanted)
    joined = np.concatenate([episode["actions"] for episode in episodes]).astype(np.float32)
    np.testing.assert_array_equal(store.column("actions"), joined)
