"""The action tokenizer is the original OpenVLA's, number by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_adapt.actions.tokens import ActionTokenizer


@pytest.mark.parametrize("vocab_size", [1024, 32000])
def test_tables_equal_the_original(shared_dir: Path, vocab_size: int) -> None:
    inputs = np.load(shared_dir / "openvla_parity" / "inputs.npz")
    expected = np.load(shared_dir / "openvla_parity" / "expected.npz")
    tokenizer, table = ActionTokenizer(vocab_size), f"tok/{vocab_size}"
    ids = tokenizer.encode(inputs["tok/actions"])
    assert np.array_equal(ids, expected[f"{table}/ids"])
    assert np.array_equal(tokenizer.decode(ids), expected[f"{table}/decoded"])
    assert np.array_equal(tokenizer.decode(expected[f"{table}/all_ids"]), expected[f"{table}/all_decoded"])


def test_batch_equals_the_original(shared_dir: Path) -> None:
    inputs = np.load(shared_dir / "openvla_parity" / "inputs.npz")
    expected = np.load(shared_dir / "openvla_parity" / "expected.npz")
    ids = ActionTokenizer(32000).encode(inputs["tok/batch_actions"])
    assert np.array_equal(ids, expected["tok/32000/batch_ids"])


@given(st.floats(-1, 1), st.sampled_from([16, 256]))
def test_decode_undoes_encode_to_half_a_bin(value: float, bins: int) -> None:
    tokenizer = ActionTokenizer(1024, bins)
    width = 2 / (bins - 1)
    assert abs(float(tokenizer.decode(tokenizer.encode(value))) - value) <= width / 2 + 1e-12


@given(st.integers(1, 255))
def test_encode_undoes_decode(bin_number: int) -> None:
    tokenizer = ActionTokenizer(1024)
    token = 1024 - bin_number
    assert int(tokenizer.encode(tokenizer.decode(token))) == token


def test_256_boundaries_give_255_centers_so_the_lowest_two_ids_fold() -> None:
    tokenizer = ActionTokenizer(32000)
    assert len(tokenizer.centers) == 255
    assert tokenizer.first_id == 31744
    assert tokenizer.decode(31744) == tokenizer.decode(31745)
    assert int(tokenizer.encode(1.0)) == 31744


def test_infinity_is_clipped_and_nan_refused() -> None:
    tokenizer = ActionTokenizer(1024)
    assert int(tokenizer.encode(-np.inf)) == 1023
    with pytest.raises(ValueError, match=r"cannot encode NaN as action tokens \(1 of 3 numbers\)"):
        tokenizer.encode([0.0, np.nan, 1.0])


@pytest.mark.parametrize(("vocab_size", "bins"), [(256, 256), (1024, 1)])
def test_sizes_that_make_no_sense_are_refused(vocab_size: int, bins: int) -> None:
    with pytest.raises(ValueError, match="wanted 2 <= bins < vocab_size"):
        ActionTokenizer(vocab_size, bins)
