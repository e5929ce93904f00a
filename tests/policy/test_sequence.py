"""Masks and positions under right padding."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.sequence import attention_pattern, position_ids, right_padded, valid_positions

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


def test_extra_tokens_take_the_positions_after_each_rows_own_text():
    positions = position_ids(MASK, patches=3, extra=2)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6]


def test_nothing_attends_to_padding_and_causal_means_no_future():
    valid = valid_positions(MASK, patches=3, extra=2)
    assert valid[1].tolist() == [True] * 5 + [False] * 2 + [True] * 2
    causal = attention_pattern(valid, holes=True, bidirectional=False)
    assert causal is not None
    assert not causal[1, 0, :, 5:7].any()
    assert not causal[0, 0].triu(1).any()
    assert causal[0, 0].tril().sum() == 45
    full = attention_pattern(valid, holes=True, bidirectional=True)
    assert full is not None
    assert full.expand(2, 1, 9, 9)[0].all()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_holes_no_mask_slows_the_kernel(bidirectional):
    assert attention_pattern(torch.ones(2, 9, dtype=torch.bool), False, bidirectional) is None


@pytest.mark.parametrize("rows", [[[0, 1, 1]], [[1, 0, 1]], [[0]]])
def test_left_padding_is_refused(rows):
    with pytest.raises(ValueError, match="right-padded"):
        right_padded(torch.tensor(rows))
