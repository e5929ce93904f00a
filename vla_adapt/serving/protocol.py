"""The wire format between a robot and its policy server: openpi's msgpack with numpy, checked on arrival.

One binary frame is one msgpack value. An array is `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, a
numpy scalar `{b"__npgeneric__": True, b"data", b"dtype"}`, so `openpi-client` from PyPI works unchanged.
An error travels as one text frame, the JSON object `{"code", "message"}`.

Unlike openpi's own decoder, `unpack` trusts nothing: dtypes come from a whitelist (an object dtype would turn
the sender's bytes into pointers), shapes must fit their buffers, and nesting and item counts are bounded.

Light on purpose: numpy and msgpack, nothing else of this package (it runs on the robot's computer).
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 32 * 2**20
MAX_DEPTH = 8
MAX_ITEMS = 20_000
MAX_RANK = 8
MAX_ERROR_CHARACTERS = 400

_CODES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
NUMERIC_DTYPES: dict[str, np.dtype] = {np.dtype(code).name: np.dtype(code) for code in _CODES}
NUMERIC_DTYPES |= {np.dtype(order + code).str: np.dtype(order + code) for code in _CODES for order in "<>"}


class WireError(ValueError):
    """A request the other side refused, or a reply that cannot be read.

    Attributes:
        code: short machine-readable reason, e.g. `bad_message`, `unknown_robot`.
        message: one line for a human: what was got, what was wanted.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ObservationError(WireError):
    """A well-formed message that is not a usable observation; a bank may raise it (or any ValueError) too."""

    def __init__(self, message: str, code: str = "bad_observation") -> None:
        super().__init__(code, message)


def pack(value: Any) -> bytes:
    """Encodes dicts, lists, numbers, strings, bytes and numpy arrays.

    Raises:
        ValueError: something in `value` has no place on the wire.
    """
    try:
        return msgpack.Packer(default=_encode_numpy, use_bin_type=True).pack(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"cannot be sent: {one_line(error)}; use arrays, numbers, strings and dicts"
        ) from None


def unpack(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Decodes one frame. Arrays come back read-only, in native byte order.

    Raises:
        WireError: `too_large`, `bad_message` (not msgpack), `bad_array`, `too_complex` (depth or item count).
    """
    if len(data) > max_bytes:
        raise WireError("too_large", f"message of {len(data)} bytes, at most {max_bytes} are accepted")
    budget = _ItemBudget()
    try:
        value = msgpack.unpackb(
            data, object_hook=budget.on_map, list_hook=budget.on_list, max_ext_len=0, max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )  # fmt: skip
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = one_line(error) or type(error).__name__
        raise WireError(
            "bad_message", f"not one msgpack value ({reason}); send one msgpack map per frame"
        ) from None
    check_depth(value)
    return value


def check_depth(value: Any, limit: int = MAX_DEPTH) -> None:
    """Refuses containers nested deeper than `limit` (iterative: cannot exhaust the stack)."""
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise WireError("too_complex", f"message nested deeper than {limit} levels; send a flat observation")


def array_from_wire(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """Rebuilds an array from its buffer after checking dtype, shape and size against each other.

    Raises:
        WireError: `bad_array`.
    """
    if not isinstance(dtype, str) or dtype not in NUMERIC_DTYPES:
        raise WireError(
            "bad_array",
            f"array of dtype {_shown(dtype)}; accepted are bool, integers and floats up to 64 bits",
        )
    if not isinstance(data, bytes):
        raise WireError("bad_array", f"array data must be bytes, got {type(data).__name__}")
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK or not all(_is_size(n) for n in shape):
        raise WireError(
            "bad_array", f"array shape must be at most {MAX_RANK} non-negative integers, got {_shown(shape)}"
        )
    kind = NUMERIC_DTYPES[dtype]
    wanted = math.prod(shape) * kind.itemsize
    if wanted != len(data):
        described = f"array of shape {_shown(list(shape))} and dtype {dtype}"
        raise WireError("bad_array", f"{described} needs {_shown(wanted)} bytes, got {len(data)}")
    if wanted == 0:
        return np.zeros(shape, kind.newbyteorder("="))
    array = np.frombuffer(data, kind).reshape(shape)
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def error_text(code: str, message: str) -> str:
    """The text frame (or HTTP body) of one error: a single line of JSON."""
    return json.dumps({"code": code, "message": one_line(message)})


def parse_error(text: str) -> tuple[str, str]:
    """(code, message) of an error frame; of foreign text (openpi sends a traceback) the last line is kept."""
    try:
        content = json.loads(text)
        return str(content["code"]), str(content["message"])
    except (ValueError, TypeError, KeyError):
        lines = [line for line in text.splitlines() if line.strip()]
        return "server_error", one_line(lines[-1]) if lines else "the server sent an empty error"


def one_line(text: object, limit: int = MAX_ERROR_CHARACTERS) -> str:
    """`text` on one line, unprintable characters replaced, cut to `limit` characters."""
    joined = " ".join(str(text)[: 4 * limit].split())
    clean = "".join(character if character.isprintable() else "?" for character in joined)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


class _ItemBudget:
    """Counts items while they are built, so that a small message cannot become a huge object."""

    def __init__(self) -> None:
        self.items = 0

    def _spend(self, count: int) -> None:
        self.items += count + 1
        if self.items > MAX_ITEMS:
            raise WireError(
                "too_complex", f"message with more than {MAX_ITEMS} items; send numbers as one array"
            )

    def on_list(self, items: list) -> list:
        self._spend(len(items))
        return items

    def on_map(self, entries: dict) -> Any:
        self._spend(len(entries))
        if b"__ndarray__" in entries:
            return _decode_array(entries)
        if b"__npgeneric__" in entries:
            return _decode_scalar(entries)
        return entries


def _encode_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise TypeError(f"array of dtype {value.dtype}")
        name = value.dtype.str
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": name, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": name}
    raise TypeError(f"a value of type {type(value).__name__}")


def _decode_array(entries: dict) -> Any:
    data, dtype, shape = (entries.get(key) for key in (b"data", b"dtype", b"shape"))
    if isinstance(dtype, str) and dtype[:2] == "<U" and isinstance(data, bytes) and shape in ([], [1]):
        return _decode_text(data)
    return array_from_wire(data, dtype, shape)


def _decode_text(data: bytes) -> str:
    """A prompt that was an `np.array("...")` on the robot."""
    try:
        return data.decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError:
        raise WireError(
            "bad_array", "text array that is not valid UTF-32; send text as a plain string"
        ) from None


def _decode_scalar(entries: dict) -> Any:
    dtype, data = entries.get(b"dtype"), entries.get(b"data")
    if isinstance(data, str) and isinstance(dtype, str) and dtype[:2] in ("<U", ">U"):
        return data
    if not isinstance(dtype, str) or dtype not in NUMERIC_DTYPES or not isinstance(data, bool | int | float):
        raise WireError(
            "bad_array", f"numpy scalar of dtype {_shown(dtype)}; accepted are bool, integers and floats"
        )
    try:
        return NUMERIC_DTYPES[dtype].type(data)
    except (OverflowError, ValueError, TypeError):
        raise WireError("bad_array", f"numpy scalar {_shown(data)} does not fit {dtype}") from None


def _children(item: Any) -> list:
    """The containers directly inside `item`."""
    if isinstance(item, dict):
        return [value for value in item.values() if isinstance(value, dict | list)]
    return [value for value in item if isinstance(value, dict | list)] if isinstance(item, list) else []


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
