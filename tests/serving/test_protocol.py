from __future__ import annotations

import contextlib
import json
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_adapt.serving.protocol import (
    MAX_DEPTH,
    MAX_ITEMS,
    NUMERIC_DTYPES,
    ObservationError,
    WireError,
    array_from_wire,
    error_text,
    one_line,
    pack,
    parse_error,
    unpack,
)

_DTYPES = st.sampled_from([dtype for name, dtype in NUMERIC_DTYPES.items() if name[0] in "<|>"])


def _array_message(data: object = b"\0" * 8, dtype: object = "<f4", shape: object = (2,)) -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


def _refusal(data: bytes) -> WireError:
    with pytest.raises(WireError) as caught:
        unpack(data)
    assert "\n" not in caught.value.message
    return caught.value


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(_DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_arrays_survive_the_wire(array: np.ndarray) -> None:
    back = unpack(pack({"a": array}))["a"]
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == array.shape


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ).filter(lambda value: _depth(value) <= MAX_DEPTH)
)  # fmt: skip
def test_plain_values_survive_the_wire(value: object) -> None:
    assert unpack(pack(value)) == value


def _depth(value: object) -> int:
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(_depth, inside), default=0)


def test_bytes_are_those_of_openpi_client() -> None:
    openpi = pytest.importorskip("openpi_client.msgpack_numpy")
    message = {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "x": np.float32(0.5), "prompt": "go"}
    assert pack(message) == openpi.packb(message)
    back = openpi.unpackb(pack(message))
    np.testing.assert_array_equal(back["image"], message["image"])
    assert unpack(openpi.packb(message))["x"] == np.float32(0.5)


@pytest.mark.parametrize("text", [np.str_("pick"), np.array("pick"), np.array(["pick"])])
def test_a_prompt_that_is_a_numpy_string_arrives_as_text(text: object) -> None:
    if isinstance(text, np.ndarray):
        packed = msgpack.packb(
            {b"__ndarray__": True, b"data": text.tobytes(), b"dtype": text.dtype.str, b"shape": text.shape}
        )
    else:
        packed = msgpack.packb({b"__npgeneric__": True, b"data": str(text), b"dtype": text.dtype.str})  # type: ignore[attr-defined]
    assert unpack(packed) == "pick"


@pytest.mark.parametrize(
    "dtype", ["|O", "O", "|V8", "<c8", "|S4", "<M8[s]", "<f16", "f4,f4", 7, None, ["<f4"], "<U3"]
)
def test_dtypes_outside_the_whitelist_are_refused(dtype: object) -> None:
    error = _refusal(
        _array_message(b"A" * 8, dtype, [1]) if dtype != "<U3" else _array_message(b"A" * 8, dtype, [2])
    )
    assert error.code == "bad_array"
    assert "dtype" in error.message


def test_invalid_utf32_text_is_refused() -> None:
    assert _refusal(_array_message(b"\xff" * 4, "<U1", [1])).code == "bad_array"


@pytest.mark.parametrize(
    "shape", [(3,), (-2,), (2**40,), (2**63, 2**63), (1,) * 9, (1.0,), "2", None, (True, 2), (0, 2**70)]
)
def test_shape_must_fit_the_buffer(shape: object) -> None:
    assert _refusal(
        _array_message(shape=shape) if _packs(shape) else _array_message(shape=[2**63, 2])
    ).code in (
        "bad_array",
        "bad_message",
    )


def _packs(shape: object) -> bool:
    try:
        msgpack.packb(shape)
    except OverflowError:
        return False
    return True


def test_shape_mismatch_says_what_was_needed() -> None:
    error = _refusal(_array_message(shape=(3,)))
    assert error.message == "array of shape [3] and dtype <f4 needs 12 bytes, got 8"


@pytest.mark.parametrize("data", ["text", None, 5, [1]])
def test_array_data_must_be_bytes(data: object) -> None:
    assert "must be bytes" in _refusal(_array_message(data)).message


@pytest.mark.parametrize(
    ("data", "dtype"), [("x", "<f4"), (b"x", "<f4"), (1, "|O"), (None, "<f4"), (1, None), (2**63, "<i8")]
)
def test_bad_scalars_are_refused(data: object, dtype: object) -> None:
    assert (
        _refusal(msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype})).code == "bad_array"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xff\xff",
        b"\x92\x01",
        pack({"a": 1})[:-1],
        pack(1) + b"\0",
        b"\x81\x01\x02",
        b"\xa1\xff",
    ],
)
def test_garbage_is_one_typed_error(data: bytes) -> None:
    assert _refusal(data).code == "bad_message"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        unpack(data)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 2000, 200_000])
def test_deep_nesting_is_refused(opening: bytes, depth: int) -> None:
    assert _refusal(opening * depth + b"\x01").code in ("too_complex", "bad_message")


def test_depth_at_the_limit_is_accepted() -> None:
    assert unpack(b"\x91" * MAX_DEPTH + b"\x01") is not None
    assert _refusal(b"\x91" * (MAX_DEPTH + 1) + b"\x01").code == "too_complex"


def test_small_messages_cannot_become_many_objects() -> None:
    rows = b"\xdc" + struct.pack(">H", MAX_ITEMS - 1) + b"\x90" * (MAX_ITEMS - 1)
    assert _refusal(b"\x92" + rows + rows).code == "too_complex"
    assert _refusal(b"\xdd\xff\xff\xff\xff").code == "bad_message"
    assert _refusal(b"\x92" + b"\xdd\x01\xff\xff\xff" * 2).code == "bad_message"


def test_size_limit() -> None:
    message = pack({"a": np.zeros(100, np.uint8)})
    assert unpack(message, max_bytes=len(message))["a"].shape == (100,)
    with pytest.raises(WireError, match="at most 50") as caught:
        unpack(message, max_bytes=50)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array(["a"]), 1j, object(), {1, 2}, np.complex64(1), 2**70]
)
def test_pack_refuses_what_has_no_place_on_the_wire(value: object) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        pack({"a": value})


def test_array_names_of_json_are_accepted_too() -> None:
    np.testing.assert_array_equal(array_from_wire(b"\1\2", "uint8", [2]), [1, 2])


def test_error_frames_round_trip() -> None:
    text = error_text("bad_state", "state has\n 7 values")
    assert "\n" not in text
    assert json.loads(text) == {"code": "bad_state", "message": "state has 7 values"}
    assert parse_error(text) == ("bad_state", "state has 7 values")


def test_a_foreign_servers_traceback_is_cut_to_its_last_line() -> None:
    assert parse_error("Traceback:\n  File x\nKeyError: 'state'\n") == ("server_error", "KeyError: 'state'")
    assert parse_error("") == ("server_error", "the server sent an empty error")


def test_one_line_cleans_and_cuts() -> None:
    assert one_line("a\n\tb\x1b[2J") == "a b?[2J"
    assert len(one_line("x" * 10_000)) == 400


def test_observation_error_is_a_value_error() -> None:
    error = ObservationError("no image")
    assert isinstance(error, ValueError)
    assert (error.code, error.message) == ("bad_observation", "no image")
