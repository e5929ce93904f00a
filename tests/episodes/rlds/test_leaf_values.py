"""Values of a leaf from stored lists laid out by hand, as tfds lays them out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vla_adapt.episodes.rlds.example_proto import encode_example, scan_example
from vla_adapt.episodes.rlds.leaf_values import read_values, stored_keys
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec


def read(path: str, leaf: LeafSpec, steps: int | None, features: Mapping[str, Any]) -> Any:
    record = encode_example(features)
    spans = scan_example(record)
    return read_values(path, leaf, steps, lambda key: (record, spans[key]) if key in spans else None)


def ragged(
    item: Kind, levels: int, shape: tuple[int, ...] = (), dtype: str = "int64", **more: Any
) -> LeafSpec:
    return LeafSpec(Kind.RAGGED, shape, dtype, levels=levels, item=item, **more)


def as_lists(values: Any) -> Any:
    return [as_lists(v) for v in values] if isinstance(values, np.ndarray | list) else values


def test_fixed_size_numbers() -> None:
    leaf = LeafSpec(Kind.NUMBER, (2,), "float32")
    values = read("steps/a", leaf, 3, {"steps/a": np.arange(6, dtype=np.float32)})
    assert values.dtype == np.float32
    assert values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert read("a", leaf, None, {"a": np.array([7, 8], np.float32)}).tolist() == [7, 8]
    with pytest.raises(ValueError, match=r"field 'steps/a' has 6 numbers, wanted 4 values x \[2\]"):
        read("steps/a", leaf, 4, {"steps/a": np.arange(6, dtype=np.float32)})


def test_unsigned_numbers_come_back() -> None:
    """tfds stores uint64 as the int64 of the same bits."""
    big = np.array([2**63 + 5, 1], np.uint64)
    values = read("steps/a", LeafSpec(Kind.NUMBER, (), "uint64"), 2, {"steps/a": big.view(np.int64)})
    assert values.dtype == np.uint64
    assert values.tolist() == [2**63 + 5, 1]


def test_one_ragged_level() -> None:
    features = {
        "steps/a/ragged_flat_values": np.arange(5),
        "steps/a/ragged_row_lengths_0": np.array([2, 0, 3]),
    }
    leaf = ragged(Kind.NUMBER, 1)
    assert stored_keys("steps/a", leaf) == ("steps/a/ragged_flat_values", "steps/a/ragged_row_lengths_0")
    assert as_lists(read("steps/a", leaf, 3, features)) == [[0, 1], [], [2, 3, 4]]
    with pytest.raises(ValueError, match="field 'steps/a' has 3 steps, wanted 4"):
        read("steps/a", leaf, 4, features)
    features["steps/a/ragged_row_lengths_0"] = np.array([2, 0, 4])
    with pytest.raises(ValueError, match="field 'steps/a' has 5 numbers, wanted 6 values"):
        read("steps/a", leaf, 3, features)


def test_two_ragged_levels_of_arrays() -> None:
    features = {
        "steps/a/ragged_flat_values": np.arange(6),
        "steps/a/ragged_row_lengths_0": np.array([1, 2]),
        "steps/a/ragged_row_lengths_1": np.array([2, 0, 1]),
    }
    got = read("steps/a", ragged(Kind.NUMBER, 2, (2,)), 2, features)
    assert as_lists(got) == [[[[0, 1], [2, 3]]], [[], [[4, 5]]]]


def test_episode_level_sequences_have_one_level_less() -> None:
    leaf = ragged(Kind.TEXT, 1, dtype="string")
    assert stored_keys("names", leaf) == ("names",)
    assert as_lists(read("names", leaf, None, {"names": [b"a", "ü".encode()]})) == ["a", "ü"]
    assert stored_keys("names", ragged(Kind.TEXT, 2))[1] == "names/ragged_row_lengths_0"


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_tensors_keep_their_precision(encoding: str) -> None:
    arrays = np.random.default_rng(0).normal(size=(3, 2, 2))
    pack = zlib.compress if encoding == "zlib" else bytes
    leaf = LeafSpec(Kind.NUMBER, (2, 2), "float64", encoding)
    features = {"steps/a": [pack(array.tobytes()) for array in arrays]}
    got = read("steps/a", leaf, 3, features)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, arrays)
    with pytest.raises(ValueError, match="field 'steps/a': stored bytes are not number float64"):
        read("steps/a", leaf, 1, {"steps/a": [b"junk"]})


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    leaf = LeafSpec(Kind.NUMBER, (2,), "bfloat16", "bytes")
    assert read("a", leaf, None, {"a": [b"\x80\x3f\x20\xc0"]}).tolist() == [1.0, -2.5]


def test_stored_shapes() -> None:
    leaf = LeafSpec(Kind.RAGGED, (-1, -1), "uint8", "bytes", item=Kind.NUMBER)
    assert stored_keys("steps/a", leaf) == ("steps/a/value", "steps/a/shape")
    features = {
        "steps/a/value": [b"\x01\x02\x03\x04\x05\x06", b"\x07"],
        "steps/a/shape": np.array([2, 3, 1, 1]),
    }
    got = read("steps/a", leaf, 2, features)
    assert [array.tolist() for array in got] == [[[1, 2, 3], [4, 5, 6]], [[7]]]


def test_text_tensors_keep_their_shape() -> None:
    leaf = ragged(Kind.TEXT, 0, (2,), "string")
    got = read("steps/a", leaf, 2, {"steps/a": [b"a", b"b", b"c", b"d"]})
    assert as_lists(got) == [["a", "b"], ["c", "d"]]


def test_missing_lists_and_wrong_kinds_are_named() -> None:
    leaf = ragged(Kind.NUMBER, 1)
    with pytest.raises(ValueError, match="no field 'steps/a/ragged_row_lengths_0'"):
        read("steps/a", leaf, 1, {"steps/a/ragged_flat_values": np.arange(5)})
    with pytest.raises(ValueError, match="field 'steps/a' holds bytes, wanted number float32"):
        read("steps/a", LeafSpec(Kind.NUMBER, (), "float32"), 1, {"steps/a": [b"x"]})
    with pytest.raises(ValueError, match="field 'steps/a' holds int64, the schema says float32"):
        read("steps/a", LeafSpec(Kind.NUMBER, (), "float32"), 1, {"steps/a": np.array([1])})
    with pytest.raises(ValueError, match="field 'steps/a' holds float, wanted ragged string"):
        read("steps/a", ragged(Kind.TEXT, 0, (1,), "string"), 1, {"steps/a": np.array([1.0])})
