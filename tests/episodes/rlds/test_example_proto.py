"""tf.train.Example by hand: undo(do(x)) == x, and equal to protobuf's own bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_adapt.episodes.rlds.example_proto import (
    BYTES,
    FLOAT,
    INT64,
    Span,
    bytes_offsets,
    encode_example,
    read_numbers,
    scan_example,
)

VALUES = st.one_of(
    st.lists(st.binary(max_size=300), max_size=5),
    hnp.arrays(np.int64, st.integers(0, 20)),
    hnp.arrays(np.float32, st.integers(0, 20)),
    hnp.arrays(np.bool_, st.integers(0, 20)),
)


@given(st.dictionaries(st.text(min_size=1, max_size=200), VALUES, max_size=5))
def test_scan_finds_what_was_encoded(features) -> None:
    record = encode_example(features)
    spans = scan_example(record)
    assert spans.keys() == features.keys()
    for key, values in features.items():
        if isinstance(values, np.ndarray):
            assert spans[key].kind == (FLOAT if values.dtype == np.float32 else INT64)
            got = read_numbers(record, spans[key])
            np.testing.assert_array_equal(got, values.astype(got.dtype))
        else:
            assert spans[key].kind == BYTES
            assert [record[at : at + size] for at, size in bytes_offsets(record, spans[key])] == values


@pytest.mark.slow
def test_equals_protobuf() -> None:
    tf_example_pb2 = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    features = {
        "b": [b"", b"x" * 200],
        "f": np.array([1.5, -2.25, np.nan], np.float32),
        "i": np.array([0, 127, 128, -1, 2**63 - 1, -(2**63)]),
    }
    message = tf_example_pb2.Example.FromString(encode_example(features))
    assert list(message.features.feature["b"].bytes_list.value) == features["b"]
    np.testing.assert_array_equal(
        np.array(message.features.feature["f"].float_list.value, np.float32), features["f"]
    )
    assert list(message.features.feature["i"].int64_list.value) == features["i"].tolist()
    record = message.SerializeToString()
    np.testing.assert_array_equal(read_numbers(record, scan_example(record)["i"]), features["i"])


def test_unpacked_numbers_are_read() -> None:
    floats = b"".join(b"\x0d" + struct.pack("<f", value) for value in (1.0, -2.0))
    assert read_numbers(floats, Span(FLOAT, 0, len(floats))).tolist() == [1.0, -2.0]
    ints = b"\x08\x05\x08\xac\x02"
    assert read_numbers(ints, Span(INT64, 0, len(ints))).tolist() == [5, 300]


@pytest.mark.parametrize("junk", [b"\x0a\x7f", b"\xff\xff\xff", b"\x0a\x03\x0a\x05a"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        scan_example(junk)
