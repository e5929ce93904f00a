"""Random access into a pseudo-random permutation: element k of the shuffled range(size), for any size.

Small ranges are shuffled and kept; large ones go through a Feistel network with cycle walking (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), which needs no memory and no start-up, so that a
dataset of a billion steps costs a worker nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

SHUFFLED_UP_TO = 1 << 16
_ROUNDS = 4
_MASK = (1 << 64) - 1


def permuted(k: int, size: int, key: tuple[int, ...]) -> int:
    """Element `k` of the permutation of range(size) that `key` selects.

    Args:
        k: 0 <= k < size.
        size: at least 1.
        key: integers, for instance (seed, dataset number, epoch).
    """
    assert 0 <= k < size, f"element {k} of a permutation of {size}"
    if size <= SHUFFLED_UP_TO:
        return int(_shuffled(size, key)[k])
    return _walk(k, size, _round_keys(key))


@lru_cache(maxsize=64)
def _shuffled(size: int, key: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed)).permutation(size).astype(np.uint16)


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    digest = hashlib.shake_256(repr(key).encode()).digest(16 * _ROUNDS)
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))


def _walk(k: int, size: int, keys: tuple[int, ...]) -> int:
    """Apply the network on the next power of two until the result falls below `size`."""
    bits = (size - 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    while True:
        high, low = k >> low_bits, k & low_mask
        for i in range(0, len(keys), 2):
            high ^= _mixed(low ^ keys[i]) & high_mask
            low ^= _mixed(high ^ keys[i + 1]) & low_mask
        k = high << low_bits | low
        if k < size:
            return k


def _mixed(value: int) -> int:
    """splitmix64's finalizer: a 64-bit hash of an integer."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
