"""y = x W^T + b + scale * (x A^T) B^T of a frozen W, another (A, B, scale) for each block of rows.

Layer and adapters are one step of autograd, which saves passes over memory: the gradient of `x` is summed
within the products. Two ways give the same numbers. Thin: the products with A and B, whose inner width is the
rank. Folded: each block's rows through W + scale * B A, and the gradient of that matrix taken apart; less
arithmetic where the rank is not small beside the layer's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vla_adapt.adaptation.low_rank import Block, Pair, plus

# Thin products run below a processor's peak, and read and write their rows once more.
_THIN_COST = 1.25


class Narrow(NamedTuple):
    """One adapter of one layer in the dtype of its products, each matrix also times the adapter's scale."""

    A: Float[Tensor, "r F"]
    B: Float[Tensor, "O r"]
    scaled_A: Float[Tensor, "r F"]
    scaled_B: Float[Tensor, "O r"]


def adapted_linear(
    x: Float[Tensor, "*rows F"],
    base: nn.Linear,
    groups: list[Group],
    pairs: list[Pair],
    folded: bool | None = None,
    narrow: Sequence[Narrow] = (),
) -> Float[Tensor, "*rows O"]:
    """What `base` makes of `x`, plus what each group's pairs make of its rows (counted over leading axes).

    Args:
        x: of the dtype of `base`.
        base: its weight and bias get no gradient.
        groups: all rows, as `row_groups` gives them.
        pairs: each is used by some group.
        folded: force one way; None picks the cheaper one where it is exact enough.
        narrow: copies of the pairs in the dtype of `x`, where the pairs themselves, which get the gradient,
            are of another; none: the pairs are of the dtype of `x`.
    """
    weights = [weight for pair in pairs for weight in (pair.A, pair.B)]
    scales = [pair.scale for pair in pairs]
    if not narrow and (fold_is_cheaper(base.weight, groups, pairs) if folded is None else folded):
        return _Folded.apply(x, base.weight, base.bias, groups, scales, *weights)  # type: ignore[no-any-return]
    copies = [matrix for each in narrow for matrix in each]
    return _Thin.apply(x, base.weight, base.bias, groups, scales, *weights, *copies)  # type: ignore[no-any-return]


Group = tuple[int, int, tuple[int, ...]]  # rows [start, stop) and the pairs that they all pass


def row_groups(blocks: list[Block], rows: int) -> list[Group]:
    """The rows cut where any block begins or ends, each part with its pairs, in order and without a hole."""
    cuts = sorted({0, rows, *(block.start for block in blocks), *(block.stop for block in blocks)})
    return [
        (start, stop, tuple(b.pair for b in blocks if b.start <= start and stop <= b.stop))
        for start, stop in pairwise(cuts)
    ]


class ExtraFlops(NamedTuple):
    """What an adapter adds to the arithmetic of a training step of its layer, either way."""

    thin: int
    folded: int

    @property
    def folding_pays(self) -> bool:
        """Whether the folded way takes less time."""
        return self.folded < _THIN_COST * self.thin


def extra_flops(rows: int, inner: int, outer: int, rank: int) -> ExtraFlops:
    """Forward and backward, with a gradient of the input; ranks of adapters of the same rows added up."""
    return ExtraFlops(6 * rows * rank * (inner + outer), (2 * rows + 6 * rank) * inner * outer)


def fold_is_cheaper(weight: Tensor, groups: list[Group], pairs: list[Pair]) -> bool:
    """Whether to fold; never in 16 bits, where a small update is lost in a sum."""
    if weight.dtype not in (torch.float32, torch.float64):
        return False
    outer, inner = weight.shape
    extra = [
        extra_flops(stop - start, inner, outer, sum(len(pairs[number].A) for number in used))
        for start, stop, used in groups
        if used
    ]
    return ExtraFlops(sum(each.thin for each in extra), sum(each.folded for each in extra)).folding_pays


class _Thin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: list[Group],
        scales: list[float], *matrices: Tensor,
    ):  # fmt: skip
        count = len(scales)
        weights, copies = matrices[: 2 * count], matrices[2 * count :]
        narrow = [Narrow(*copies[4 * n : 4 * n + 4]) for n in range(count)] if copies else [
            _scaled(weights[2 * n], weights[2 * n + 1], scales[n]) for n in range(count)
        ]  # fmt: skip
        out = nn.functional.linear(x, weight, bias)
        rows_out, rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        hidden = []
        for start, stop, used in groups:
            for pair in used:
                inner = torch.mm(_cut(rows, start, stop), narrow[pair].scaled_A.t())
                _add_product(_cut(rows_out, start, stop), inner, narrow[pair].B.t())
                hidden.append(inner)
        kept = [matrix for each in narrow for matrix in (each.A, each.scaled_B)]
        ctx.save_for_backward(rows, weight, *kept, *hidden)
        ctx.groups, ctx.shape, ctx.extra = groups, x.shape, len(copies)
        ctx.dtypes = [each.dtype for each in weights]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        count, dtypes = len(ctx.dtypes), ctx.dtypes
        rows, weight, *rest = ctx.saved_tensors
        matrices, hidden = rest[:count], iter(rest[count:])
        wanted = ctx.needs_input_grad[5 : 5 + count]
        rows_grad = grad.reshape(-1, grad.shape[-1])
        x_grad = torch.mm(rows_grad, weight) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = [None] * count
        for start, stop, used in ctx.groups:
            part = _cut(rows_grad, start, stop)
            for pair in used:
                inner, a, b = next(hidden), 2 * pair, 2 * pair + 1
                if wanted[b]:
                    grads[b] = plus(grads[b], part.t(), inner, dtypes[b])
                if not wanted[a] and x_grad is None:
                    continue
                inner_grad = torch.mm(part, matrices[b])
                if wanted[a]:
                    grads[a] = plus(grads[a], inner_grad.t(), _cut(rows, start, stop), dtypes[a])
                if x_grad is not None:
                    _add_product(_cut(x_grad, start, stop), inner_grad, matrices[a])
        x_grad = None if x_grad is None else x_grad.view(ctx.shape)
        return x_grad, None, None, None, None, *grads, *[None] * ctx.extra


def _scaled(inner: Tensor, outer: Tensor, scale: float) -> Narrow:
    if scale == 1:
        return Narrow(inner, outer, inner, outer)
    return Narrow(inner, outer, inner * scale, outer * scale)


def _cut(rows: Tensor, start: int, stop: int) -> Tensor:
    return rows if start == 0 and stop == len(rows) else rows[start:stop]


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: list[Group],
        scales: list[float], *pairs: Tensor,
    ):  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        sums, parts = [], []
        for start, stop, used in groups:
            total = weight
            for pair in used:
                total = torch.addmm(total, pairs[2 * pair + 1], pairs[2 * pair], alpha=scales[pair])
            sums.append(total)
            parts.append(nn.functional.linear(rows[start:stop], total, bias))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        ctx.save_for_backward(rows, *pairs, *sums)
        ctx.groups, ctx.scales, ctx.shape = groups, scales, x.shape
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, *rest = ctx.saved_tensors
        pairs, sums = rest[: 2 * len(ctx.scales)], rest[2 * len(ctx.scales) :]
        wanted = ctx.needs_input_grad[5:]
        rows_grad = grad.reshape(-1, grad.shape[-1])
        x_grad = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = [None] * len(pairs)
        for (start, stop, used), total in zip(ctx.groups, sums, strict=True):
            part = rows_grad[start:stop]
            if x_grad is not None:
                torch.mm(part, total, out=x_grad[start:stop])
            trained = [pair for pair in used if wanted[2 * pair] or wanted[2 * pair + 1]]
            if not trained:
                continue
            whole = torch.mm(part.t(), rows[start:stop])
            for pair in trained:
                a, b, update = 2 * pair, 2 * pair + 1, whole * ctx.scales[pair]
                if wanted[a]:
                    grads[a] = plus(grads[a], pairs[b].t(), update)
                if wanted[b]:
                    grads[b] = plus(grads[b], update, pairs[a].t())
        return None if x_grad is None else x_grad.view(ctx.shape), None, None, None, None, *grads


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices to `total`, in place, also where a compiler would make a copy first."""
    if torch.compiler.is_compiling():
        torch.ops.vla_adapt.add_product(total, left, right)
    else:
        total.addmm_(left, right)


_LIBRARY = torch.library.Library("vla_adapt", "FRAGMENT")
_LIBRARY.define("add_product(Tensor(a!) total, Tensor left, Tensor right) -> ()")


@torch.library.impl(_LIBRARY, "add_product", "CompositeExplicitAutograd")
def _add_product_now(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left, right)
