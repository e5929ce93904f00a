"""Attention: what is not counted is not looked at; any width finds its heads."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.attention import Attention


@pytest.mark.parametrize(("width", "heads"), [(128, 8), (48, 3), (64, 4), (160, 8), (7, 1), (13, 1)])
def test_heads_divide_the_width(width: int, heads: int):
    attention = Attention(width)
    assert attention.heads == heads
    assert attention(torch.randn(2, 3, width), torch.randn(2, 5, width)).shape == (2, 3, width)


def test_context_that_is_not_counted_changes_nothing():
    torch.manual_seed(0)
    attention, queries, context = Attention(16), torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    counted = torch.tensor([[True, True, False, True, False]] * 2)
    seen = attention(queries, context, counted)
    torch.testing.assert_close(seen, attention(queries, context[:, counted[0]]))
    assert not torch.allclose(seen, attention(queries, context), atol=1e-4)
