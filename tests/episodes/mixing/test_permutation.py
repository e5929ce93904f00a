"""Random access into permutations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_adapt.episodes.mixing import permutation
from vla_adapt.episodes.mixing.permutation import permuted


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2000), st.integers(0, 2**32), st.booleans())
def test_every_element_once(size: int, seed: int, network: bool) -> None:
    keys = permutation._round_keys((seed,))
    get = (lambda k: permutation._walk(k, size, keys)) if network else (lambda k: permuted(k, size, (seed,)))
    assert sorted(get(k) for k in range(size)) == list(range(size))


def test_large_ranges_need_no_table() -> None:
    size = 10**12 + 7
    got = [permuted(k, size, (1, 2)) for k in range(2000)]
    assert len(set(got)) == 2000
    assert all(0 <= value < size for value in got)


def test_network_is_well_mixed() -> None:
    size = permutation.SHUFFLED_UP_TO + 1000
    got = np.array([permuted(k, size, (5, 0, 3)) for k in range(10_000)]) / size
    counts = np.histogram(got, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 500).max() < 110  # 5 sigma of a uniform draw
    assert abs(np.corrcoef(got[:-1], got[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(np.arange(10_000), got)[0, 1]) < 0.03


@pytest.mark.parametrize("size", [500, permutation.SHUFFLED_UP_TO + 500])
def test_keys_give_different_orders(size: int) -> None:
    first = [permuted(k, size, (0, 0, 0)) for k in range(200)]
    assert first == [permuted(k, size, (0, 0, 0)) for k in range(200)]
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        other = [permuted(k, size, key) for k in range(200)]
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 10
