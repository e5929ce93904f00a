"""Low-rank products by blocks of rows: both ways against plain autograd, for any cut of the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, float64

from vla_adapt.adaptation.low_rank import Block, Pair, add_low_rank, dense_is_cheaper


def make_pairs(draw: torch.Generator, ranks: list[int], scales: list[float]) -> list[Pair]:
    return [
        Pair(
            torch.randn(rank, 6, generator=draw, dtype=float64).requires_grad_(),
            torch.randn(5, rank, generator=draw, dtype=float64).requires_grad_(),
            scale,
        )
        for rank, scale in zip(ranks, scales, strict=True)
    ]


def plainly(out: Tensor, x: Tensor, blocks: list[Block], pairs: list[Pair]) -> Tensor:
    total, rows = out.reshape(-1, 5), x.reshape(-1, 6)
    for block in blocks:
        inner, outer, scale = pairs[block.pair]
        part = rows[block.start : block.stop] @ inner.t() @ outer.t() * scale
        total = total + torch.cat([total[: block.start] * 0, part, total[block.stop :] * 0])
    return total.view(out.shape)


def gradients(result: Tensor, x: Tensor, base: Tensor, pairs: list[Pair]) -> list[Tensor]:
    wanted = [x, base, *(weight for pair in pairs for weight in (pair.A, pair.B))]
    grads = torch.autograd.grad((result * result.detach().cos()).sum(), wanted)
    return [result.detach(), *grads]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    data=st.data(),
    dense=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_cut_of_the_rows_equals_plain_autograd(
    counts: list[int], data: st.DataObject, dense: bool, seed: int
):
    """With holes that no block covers, pairs used twice, and a pair over rows that others hold too."""
    draw = torch.Generator().manual_seed(seed)
    ends = [sum(counts[: n + 1]) for n in range(len(counts))]
    holes = data.draw(st.sets(st.integers(0, len(counts) - 1), max_size=len(counts) - 1))
    own = [n for n in range(len(counts)) if n not in holes]
    owner = {n: data.draw(st.integers(0, len(own) - 1)) for n in own}
    used = sorted(set(owner.values()))
    blocks = [Block(ends[n] - counts[n], ends[n], used.index(owner[n])) for n in own]
    if data.draw(st.booleans()):
        blocks += [Block(block.start, block.stop, len(used), first=False) for block in blocks]
    number = 1 + max(block.pair for block in blocks)
    ranks = data.draw(st.lists(st.integers(1, 4), min_size=number, max_size=number))
    pairs = make_pairs(draw, ranks, [0.5 + n for n in range(number)])
    x = torch.randn(ends[-1], 6, generator=draw, dtype=float64).requires_grad_()
    base = torch.randn(ends[-1], 5, generator=draw, dtype=float64).requires_grad_()
    got = gradients(add_low_rank(base * 1, x, blocks, pairs, dense=dense), x, base, pairs)
    wanted = gradients(plainly(base, x, blocks, pairs), x, base, pairs)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dense", [False, True])
def test_leading_axes_are_rows(dense: bool):
    draw = torch.Generator().manual_seed(0)
    pairs = make_pairs(draw, [2, 3], [2.0, 0.5])
    x = (
        torch.randn(3, 4, 6, generator=draw, dtype=float64).transpose(0, 1).requires_grad_()
    )  # rows not in memory order
    base = torch.randn(4, 3, 5, generator=draw, dtype=float64).requires_grad_()
    blocks = [Block(0, 6, 0), Block(6, 12, 1)]
    got = gradients(add_low_rank(base * 1, x, blocks, pairs, dense=dense), x, base, pairs)
    wanted = gradients(plainly(base, x, blocks, pairs), x, base, pairs)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("trains", ["x", "A", "B"])
def test_only_what_trains_gets_a_gradient(dense: bool, trains: str):
    draw = torch.Generator().manual_seed(0)
    pairs = make_pairs(draw, [2], [2.0])
    x = torch.randn(4, 6, generator=draw, dtype=float64)
    parts = {"x": x, "A": pairs[0].A, "B": pairs[0].B}
    for name, tensor in parts.items():
        tensor.requires_grad_(name == trains)
    add_low_rank(torch.zeros(4, 5, dtype=float64), x, [Block(0, 4, 0)], pairs, dense=dense).sum().backward()
    assert {name for name, tensor in parts.items() if tensor.grad is not None} == {trains}
    alone = parts[trains].grad.clone()
    parts[trains].grad = None
    plainly(torch.zeros(4, 5, dtype=float64), x, [Block(0, 4, 0)], pairs).sum().backward()
    torch.testing.assert_close(alone, parts[trains].grad)


def test_masks_are_made_once_per_shape():
    pairs = make_pairs(torch.Generator().manual_seed(0), [2, 2], [1.0, 1.0])
    blocks, masks = [Block(0, 1, 0), Block(1, 2, 1)], {}
    for rows in (2, 2, 3):
        out, x = torch.zeros(rows, 5, dtype=float64), torch.ones(rows, 6, dtype=float64)
        add_low_rank(out, x, blocks, pairs, dense=True, masks=masks)
    assert len(masks) == 2


def test_dense_pays_only_where_launches_dominate():
    def pairs(width: int, robots: int) -> list[Pair]:
        return [Pair(torch.empty(16, width), torch.empty(width, 16), 1.0)] * robots

    assert dense_is_cheaper(16, 16, pairs(128, 16))  # a decoding step of the tiny twin
    assert not dense_is_cheaper(1600, 4, pairs(128, 4))  # its training
    assert not dense_is_cheaper(1024, 4, pairs(1024, 4))
    assert not dense_is_cheaper(16, 1, pairs(128, 1))  # one robot: nothing to save
