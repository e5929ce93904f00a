"""Parity with tfds: random schemas of every feature kind, written by tfds, read back equal."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from vla_adapt.episodes.rlds.rlds_store import RldsStore
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

pytestmark = pytest.mark.slow

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NUMBERS = [*INTEGERS, "bool", "float16", "float32", "float64"]  # tfds writes bfloat16 only as bytes
IMAGES = [("jpeg", "uint8", 1), ("jpeg", "uint8", 3), ("png", "float32", 1)]
IMAGES += [("png", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 2, 3, 4)]

Made = tuple[Any, Callable[[], Any]]


@pytest.fixture(scope="module")
def tfds() -> Any:
    pytest.importorskip("tensorflow")
    return pytest.importorskip("tensorflow_datasets")


class Maker:
    """Random tfds features, each with a function that makes values for it."""

    def __init__(self, tfds: Any, seed: int):
        self.features = tfds.features
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)

    def tensor(self) -> Made:
        encoding = self.random.choice(["none", "none", "bytes", "zlib"])
        name = self.random.choice(NUMBERS if encoding == "none" else [*NUMBERS, "bfloat16"])
        dims = self.random.randrange(4)
        unknown = 0 if encoding == "none" else self.random.randrange(dims + 1)
        shape = self._shape(dims, unknown)
        feature = self.features.Tensor(shape=shape, dtype=_dtype(name), encoding=encoding)
        return feature, lambda: self._array(name, self._filled(shape))

    def wide(self) -> Made:
        feature = self.features.Tensor(shape=(5, 20), dtype=np.float32)
        return feature, lambda: self._array("float32", (5, 20))

    def scalar(self) -> Made:
        name = self.random.choice(NUMBERS)
        return self.features.Scalar(_dtype(name)), lambda: self._array(name, ())[()]

    def words(self) -> Made:
        shape = self._shape(self.random.randrange(1, 3), 0)
        count = int(np.prod(self._filled(shape)))
        feature = self.features.Tensor(shape=shape, dtype=np.str_)
        return feature, lambda: np.array([self._text() for _ in range(count)], object).reshape(shape)

    def text(self) -> Made:
        return self.features.Text(), self._text

    def image(self) -> Made:
        encoding, dtype, channels = self.random.choice(IMAGES)
        size = (6, 9) if self.random.random() < 0.7 else (None, None)
        feature = self.features.Image(
            shape=(*size, channels), dtype=np.dtype(dtype).type, encoding_format=encoding
        )
        return feature, lambda: self._array(dtype, (*self._filled(size), channels))

    def label(self) -> Made:
        return self.features.ClassLabel(num_classes=300), lambda: self.random.randrange(-1, 300)

    def box(self) -> Made:
        def value() -> Any:
            low, high = self.rng.integers(0, 8, 2) / 16, self.rng.integers(8, 17, 2) / 16
            return self.features.BBox(ymin=low[0], xmin=low[1], ymax=high[0], xmax=high[1])

        return self.features.BBoxFeature(), value

    def plain(self) -> Made:
        makers = [self.tensor, self.tensor, self.wide, self.words, self.text, self.image, self.label]
        return self.random.choice([*makers, self.box, self.scalar])()

    def node(self, depth: int) -> Made:
        """A feature that may contain others."""
        kind = self.random.random()
        if depth >= 4 or kind < 0.5:
            return self.plain()
        if kind < 0.75:
            return self.folder(depth)
        inner, value = self.node(depth + 1)
        most = self.random.choice([0, 3, 3])
        if self.random.random() < 0.2:
            return self.features.Sequence(inner, length=2), lambda: [value(), value()]
        several = lambda: [value() for _ in range(self.random.randrange(most + 1))]  # noqa: E731
        return self.features.Sequence(inner), several

    def folder(self, depth: int) -> Made:
        parts = {f"f{depth}{i}": self.node(depth + 1) for i in range(self.random.randrange(1, 4))}
        feature = self.features.FeaturesDict({key: part for key, (part, _) in parts.items()})
        return feature, lambda: {key: value() for key, (_, value) in parts.items()}

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "bool":
            return self.rng.integers(0, 2, shape).astype(bool)
        if name in INTEGERS:
            info = np.iinfo(name)
            return np.asarray(self.rng.integers(info.min, info.max, shape, dtype=name, endpoint=True))
        return np.asarray(self.rng.normal(size=shape)).astype(_dtype(name))

    def _text(self) -> str:
        return "".join(self.random.choices(string.printable + "äß漢🤖", k=self.random.randrange(12)))

    def _shape(self, dims: int, unknown: int) -> tuple[int | None, ...]:
        sizes: list[int | None] = [self.random.randrange(1, 4) for _ in range(dims)]
        for i in self.random.sample(range(dims), unknown):
            sizes[i] = None
        return tuple(sizes)

    def _filled(self, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        return tuple(self.random.randrange(1, 4) if size is None else size for size in shape)


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(name).type


def write(tfds: Any, features: Any, episodes: list[dict[str, Any]], folder: Path) -> Any:
    """`episodes` as a tfds dataset in `folder`, in this order."""

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "random_kinds"
        url_infos: ClassVar[dict[str, Any]] = {}  # else tfds looks for a package that this module is not in

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            yield from enumerate(episodes)

    builder = Written(data_dir=str(folder))
    builder.download_and_prepare()
    return builder


def read(store: RldsStore, field: str, leaf: LeafSpec, episode: int) -> list[Any]:
    """One field of all steps."""
    steps = range(int(store.lengths[episode]))
    if leaf.holds is Kind.TEXT:
        return store.texts(field, episode)
    if leaf.holds is Kind.NUMBER:
        return list(store.numbers(field, episode))
    one = store.images if leaf.kind is Kind.RAGGED else store.image
    return [one(field, episode, step) for step in steps]


def pick(value: Any, path: str) -> Any:
    """What lies at `path` of nested dicts; lists of dicts, as sequences are given, become nested lists."""
    for part in path.split("/") if path else ():
        if isinstance(value, list):
            return [pick(item, path) for item in value]
        value, path = value[part], path.partition("/")[2]
    return value


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal values, nested alike."""
    nested = hasattr(theirs, "nrows")  # a ragged tensor of TensorFlow
    if nested or isinstance(theirs, list):
        count = int(theirs.nrows()) if nested else len(theirs)
        assert len(ours) == count, where
        for i in range(count):
            assert_same(ours[i], theirs[i], f"{where}[{i}]")
        return
    theirs = np.asarray(theirs.numpy() if hasattr(theirs, "numpy") else theirs)
    if theirs.dtype.kind in "OSU":
        flat = [x if isinstance(x, str) else x.decode() for x in theirs.ravel()]
        assert np.asarray(ours, object).ravel().tolist() == flat, where
        return
    ours = np.asarray(ours)
    if theirs.size == 0:
        assert ours.size == 0, where
        return
    assert ours.shape == theirs.shape, where
    if theirs.dtype.name == "bfloat16":
        theirs = theirs.astype(np.float32)
    np.testing.assert_array_equal(ours, theirs, where)


def assert_equal_to(store: RldsStore, records: list[Any], lossless: bool) -> None:
    """The store's episodes against `records`: {"steps": [...], "info": {...}}; `lossless` leaves out JPEG
    and rounds what tfds rounds."""
    for episode, record in enumerate(records):
        for field, leaf in store.fields.items():
            if lossless and leaf.encoding == "jpeg":
                continue
            theirs = [pick(step, field) for step in record["steps"]]
            if lossless and leaf.dtype == "float64" and not leaf.encoding:
                theirs = rounded(theirs)
            ours = read(store, field, leaf, episode)
            assert len(ours) == len(theirs) == store.lengths[episode]
            for step, pair in enumerate(zip(ours, theirs, strict=True)):
                assert_same(*pair, f"{field} {leaf} episode {episode} step {step}")
        facts = store.metadata(episode)
        for name, value in facts.items():
            leaf = store.leaves[name]
            if lossless and leaf.encoding == "jpeg":
                continue
            theirs = pick(record, name)
            if lossless and leaf.dtype == "float64" and not leaf.encoding:
                theirs = rounded(theirs)
            assert_same(value, theirs, f"{name} {leaf} episode {episode}")


def rounded(value: Any) -> Any:
    return [rounded(item) for item in value] if isinstance(value, list) else np.asarray(value, np.float32)


def check_seed(tfds: Any, seed: int, folder: Path) -> bool:
    """Write and read one random dataset; returns whether tfds can read what it has written."""
    maker = Maker(tfds, seed)
    step, step_value = maker.folder(0)
    info, info_value = maker.folder(0)
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "info": info})
    episodes = [
        {"steps": [step_value() for _ in range(maker.random.randrange(1, 5))], "info": info_value()}
        for _ in range(3)
    ]
    builder = write(tfds, features, episodes, folder)
    store = RldsStore.open(RldsFolder.open(folder), "train")
    assert_equal_to(store, episodes, lossless=True)
    try:
        theirs = [
            {**record, "steps": list(record["steps"])}
            for record in tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False))
        ]
    except Exception:  # tfds 4.9 fails on some it has written: empty nested sequences, two-channel images
        return False
    assert_equal_to(store, theirs, lossless=False)
    return True


def test_random_schemas_read_as_tfds_reads_them(tfds: Any, tmp_path: Path) -> None:
    """Every schema reads back as what was written; those that tfds itself can read, as tfds reads them."""
    tfds.disable_progress_bar()
    by_tfds = [check_seed(tfds, seed, tmp_path / str(seed)) for seed in range(20)]
    assert sum(by_tfds) >= 10
