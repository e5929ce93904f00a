"""A frozen layer with its adapters in one step: both ways against plain autograd, for any cut of the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, float64, nn

from vla_adapt.adaptation.adapted_linear import adapted_linear, extra_flops, fold_is_cheaper, row_groups
from vla_adapt.adaptation.low_rank import Block, Pair


def make_pair(rank: int, scale: float, draw: torch.Generator) -> Pair:
    return Pair(
        torch.randn(rank, 6, generator=draw, dtype=float64).requires_grad_(),
        torch.randn(5, rank, generator=draw, dtype=float64).requires_grad_(),
        scale,
    )


def plainly(x: Tensor, base: nn.Linear, blocks: list[Block], pairs: list[Pair]) -> Tensor:
    out, rows = base(x), x.reshape(-1, 6)
    for start, stop, number, _ in blocks:
        inner, outer, scale = pairs[number]
        part = rows[start:stop] @ inner.t() @ outer.t() * scale
        holes = (0, 0, start, len(rows) - stop)
        out = out + nn.functional.pad(part, holes).view(out.shape)
    return out


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    covered=st.lists(st.booleans(), min_size=4, max_size=4),
    shared=st.booleans(),
    bias=st.booleans(),
    folded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_cut_of_the_rows_equals_plain_autograd(
    counts: list[int], covered: list[bool], shared: bool, bias: bool, folded: bool, seed: int
):
    """With rows that no adapter covers, a pair used twice, and one over rows that others hold too."""
    draw = torch.Generator().manual_seed(seed)
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    own = [n for n in range(len(counts)) if covered[n]] or [0]
    blocks = [Block(ends[n] - counts[n], ends[n], place % 2) for place, n in enumerate(own)]
    number = 1 + max(block.pair for block in blocks)
    if shared:
        blocks.append(Block(blocks[0].start, blocks[-1].stop, number, first=False))
    pairs = [make_pair(2 + n, 0.5 + n, draw) for n in range(number + shared)]
    base = nn.Linear(6, 5, bias=bias, dtype=float64).requires_grad_(False)
    x = torch.randn(ends[-1], 2, 6, generator=draw, dtype=float64).requires_grad_()
    blocks = [Block(2 * b.start, 2 * b.stop, b.pair, b.first) for b in blocks]
    wanted = [x, *(weight for pair in pairs for weight in (pair.A, pair.B))]
    results = []
    groups = row_groups(blocks, 2 * ends[-1])
    for result in (adapted_linear(x, base, groups, pairs, folded), plainly(x, base, blocks, pairs)):
        results.append(
            [result.detach(), *torch.autograd.grad((result * result.detach().cos()).sum(), wanted)]
        )
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("folded", [False, True])
def test_no_gradient_is_made_that_nobody_wants(folded):
    draw = torch.Generator().manual_seed(0)
    pair = make_pair(2, 1.0, draw)
    frozen = Pair(pair.A.detach(), pair.B, 1.0)
    base = nn.Linear(6, 5, dtype=float64).requires_grad_(False)
    x = torch.randn(4, 6, dtype=float64)
    adapted_linear(x, base, [(0, 4, (0,))], [frozen], folded).sum().backward()
    assert pair.B.grad is not None
    assert pair.A.grad is None
    assert x.grad is None


def test_folding_pays_for_ranks_that_are_not_small_and_never_in_16_bits():
    assert extra_flops(2000, 64, 64, rank=32).folding_pays
    assert not extra_flops(2000, 4096, 4096, rank=32).folding_pays
    assert not extra_flops(4, 64, 64, rank=2).folding_pays
    draw = torch.Generator().manual_seed(0)
    pairs, groups = [make_pair(4, 1.0, draw)], [(0, 2000, (0,))]
    assert fold_is_cheaper(torch.empty(5, 6), groups, pairs)
    assert not fold_is_cheaper(torch.empty(5, 6, dtype=torch.bfloat16), groups, pairs)
