"""Values of one leaf from the lists a record stores it in: numbers, texts and images, fixed-size or ragged.

tfds stores a leaf inside two or more sequences (the steps count as one) as "<path>/ragged_flat_values" and
one "<path>/ragged_row_lengths_<i>" a level, a tensor of several unknown sizes as "<path>/value" and
"<path>/shape", everything else under its path.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from vla_adapt.episodes.rlds.example_proto import (
    BYTES,
    KIND_NAMES,
    Buffer,
    Span,
    bytes_offsets,
    read_numbers,
)
from vla_adapt.episodes.storage.feature_spec import STEPS, Kind, LeafSpec

# Key of a stored list -> the bytes it lies in and where; None: the record lacks it.
Fetch = Callable[[str], tuple[Buffer, Span] | None]


def stored_keys(path: str, leaf: LeafSpec) -> tuple[str, ...]:
    """Keys of all lists that a record stores the leaf in."""
    names = (f"{path}/value", f"{path}/shape") if leaf.stores_shape else (path,)
    depth = leaf.levels + path.startswith(STEPS)
    return tuple(key for name in names for key in _list_keys(name, depth))


def read_dtype(leaf: LeafSpec) -> np.dtype:
    """Dtype of the values read: the schema's, but float32 where tfds stores no more, also for bfloat16."""
    if leaf.dtype == "bfloat16" or (leaf.dtype == "float64" and not leaf.encoding):
        return np.dtype(np.float32)
    return np.dtype(leaf.dtype)


def read_values(path: str, leaf: LeafSpec, steps: int | None, fetch: Fetch) -> Shaped[np.ndarray, ...]:
    """All values of a leaf in one record.

    Args:
        path: of the leaf.
        leaf: its spec.
        steps: length of the episode; None for an episode-level leaf.
        fetch: gives the stored lists.

    Returns:
        Fixed-size numbers: [T, *shape] (or [*shape] at episode level). Texts: object arrays of str in that
        shape. Images: object arrays of their encoded bytes. Ragged leaves: object arrays of arrays, one
        nesting a level.

    Raises:
        ValueError: a list is missing, or does not hold what the schema says; names the field.
    """
    depth = leaf.levels + (steps is not None)
    value_key, *length_keys = _list_keys(f"{path}/value" if leaf.stores_shape else path, depth)
    lengths = [_integers(key, fetch) for key in length_keys]
    if lengths:
        count: int | None = int(lengths[-1].sum())
    else:
        count = steps if depth else 1
    items = _items(path, leaf, value_key, count, depth, fetch)
    for level in reversed(lengths):
        items = _split(items, level, path)
    if steps is not None and len(items) != steps:
        raise ValueError(f"field '{path}' has {len(items)} steps, wanted {steps}")
    return items if depth else items[0]


def _list_keys(name: str, depth: int) -> tuple[str, ...]:
    if depth < 2:
        return (name,)
    lengths = (f"{name}/ragged_row_lengths_{i}" for i in range(depth - 1))
    return (f"{name}/ragged_flat_values", *lengths)


def _items(
    path: str, leaf: LeafSpec, key: str, count: int | None, depth: int, fetch: Fetch
) -> Shaped[np.ndarray, "N ..."]:
    """The innermost items in order; `count` of them, None: as many as are stored."""
    if leaf.holds is Kind.NUMBER and not leaf.encoding:
        return _shaped(_numbers(key, leaf, fetch).astype(read_dtype(leaf)), path, leaf, count)
    strings = _strings(key, leaf, fetch)
    if leaf.holds is Kind.TEXT:
        return _shaped(_objects([text.decode("utf-8", "replace") for text in strings]), path, leaf, count)
    if count is not None and len(strings) != count:
        raise ValueError(f"field '{path}' has {len(strings)} values, wanted {count}")
    if leaf.holds is Kind.IMAGE:
        return _objects(strings)
    shapes: Sequence[Sequence[int]] = [leaf.shape] * len(strings)
    if leaf.stores_shape:
        shape_key = _list_keys(f"{path}/shape", depth)[0]
        shapes = _integers(shape_key, fetch).reshape(len(strings), len(leaf.shape)).tolist()
    arrays = [_decode(data, shape, path, leaf) for data, shape in zip(strings, shapes, strict=True)]
    if -1 in leaf.shape:
        return _objects(arrays)
    return np.stack(arrays) if arrays else np.zeros((0, *leaf.shape), read_dtype(leaf))


def _shaped(
    flat: Shaped[np.ndarray, " _"], path: str, leaf: LeafSpec, count: int | None
) -> Shaped[np.ndarray, "N ..."]:
    """Flat values as `count` items of the leaf's shape; one unknown size, or the count, is worked out."""
    known = math.prod(size for size in leaf.shape if size != -1)
    unknown = leaf.shape.count(-1) + (count is None)
    whole = known * (1 if count is None else count)
    if unknown > 1:
        raise ValueError(
            f"field '{path}' has {unknown} unknown sizes and no stored shape; tfds cannot read it"
        )
    if (flat.size % whole if whole else flat.size) if unknown else flat.size != whole:
        wanted = "episode" if count is None else f"{count} values"
        raise ValueError(f"field '{path}' has {flat.size} numbers, wanted {wanted} x {list(leaf.shape)}")
    missing = flat.size // whole if whole else 0
    shape = tuple(missing if size == -1 else size for size in leaf.shape)
    return flat.reshape(missing if count is None else count, *shape)


def _decode(data: bytes, shape: Sequence[int], path: str, leaf: LeafSpec) -> Shaped[np.ndarray, ...]:
    """One tensor stored as its bytes."""
    try:
        raw = zlib.decompress(data) if leaf.encoding == "zlib" else data
        if leaf.dtype == "bfloat16":  # the upper half of a float32
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, np.dtype(leaf.dtype).newbyteorder("<"))
        return values.astype(read_dtype(leaf), copy=False).reshape(shape)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"field '{path}': stored bytes are not {leaf} ({error})") from None


def _split(
    items: Shaped[np.ndarray, "N ..."], lengths: Int64[np.ndarray, " R"], path: str
) -> Shaped[np.ndarray, " R"]:
    """Group items by row lengths."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if total != len(items):
        raise ValueError(f"field '{path}' has {len(items)} values, its row lengths say {total}")
    return _objects([items[end - length : end] for end, length in zip(ends, lengths, strict=True)])


def _objects(values: Sequence[object]) -> Shaped[np.ndarray, " N"]:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def _integers(key: str, fetch: Fetch) -> Int64[np.ndarray, " _"]:
    values = read_numbers(*_list(key, fetch))
    if values.dtype.kind != "i":
        raise ValueError(f"field '{key}' holds {values.dtype}, wanted integers")
    return values


def _numbers(key: str, leaf: LeafSpec, fetch: Fetch) -> Shaped[np.ndarray, " _"]:
    record, span = _list(key, fetch)
    if span.kind == BYTES and span.end > span.start:
        raise ValueError(f"field '{key}' holds bytes, wanted {leaf}")
    numbers = read_numbers(record, span)
    if numbers.size and (numbers.dtype.kind == "f") != (read_dtype(leaf).kind == "f"):
        raise ValueError(f"field '{key}' holds {numbers.dtype}, the schema says {leaf.dtype}")
    return numbers


def _strings(key: str, leaf: LeafSpec, fetch: Fetch) -> list[bytes]:
    record, span = _list(key, fetch)
    if span.kind != BYTES and span.end > span.start:
        raise ValueError(f"field '{key}' holds {KIND_NAMES[span.kind]}, wanted {leaf}")
    return [bytes(record[at : at + size]) for at, size in bytes_offsets(record, span)]


def _list(key: str, fetch: Fetch) -> tuple[Buffer, Span]:
    found = fetch(key)
    if found is None:
        raise ValueError(f"no field '{key}'")
    return found
