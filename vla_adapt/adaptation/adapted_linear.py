"""y = x W^T + b + scale * (x A^T) B^T of a frozen W, another (A, B, scale) for each block of rows.

Layer and adapters are one step of autograd, which saves passes over memory: the gradient of `x` is summed
within the products. Two ways give the same numbers. Thin: the products with A and B, whose inner width is the
rank. Folded: each block's rows through W + scale * B A, and the gradient of that matrix taken apart; less
arithmetic where the rank is not small beside the layer's widths.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vla_adapt.adaptation.low_rank import Block, Pair

# Thin products run below a processor's peak, and read and write their rows once more.
_THIN_COST = 1.25


def adapted_linear(
    x: Float[Tensor, "*rows F"],
    base: nn.Linear,
    blocks: list[Block],
    pairs: list[Pair],
    folded: bool | None = None,
) -> Float[Tensor, "*rows O"]:
    """What `base` makes of `x`, plus what each block's pair makes of its rows (counted over leading axes).

    Args:
        x: of the dtype of all matrices.
        base: its weight and bias get no gradient.
        blocks: as in `low_rank.add_low_rank`.
        pairs: each is used by some block.
        folded: force one way; None picks the cheaper one where it is exact enough.
    """
    weights = [weight for pair in pairs for weight in (pair.A, pair.B)]
    groups = _groups(blocks, x.numel() // x.shape[-1])
    if folded is None:
        folded = fold_is_cheaper(base.weight, groups, pairs)
    scales = [pair.scale for pair in pairs]
    way = _Folded if folded else _Thin
    return way.apply(x, base.weight, base.bias, groups, scales, *weights)  # type: ignore[no-any-return]


Group = tuple[int, int, tuple[int, ...]]  # rows [start, stop) and the pairs that they all pass


def _groups(blocks: list[Block], rows: int) -> list[Group]:
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
        scales: list[float], *pairs: Tensor,
    ):  # fmt: skip
        out = nn.functional.linear(x, weight, bias)
        rows_out, rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        hidden = []
        for start, stop, used in groups:
            for pair in used:
                inner = torch.mm(rows[start:stop], pairs[2 * pair].t()).mul_(scales[pair])
                rows_out[start:stop].addmm_(inner, pairs[2 * pair + 1].t())
                hidden.append(inner)
        ctx.save_for_backward(rows, weight, *pairs, *hidden)
        ctx.groups, ctx.scales, ctx.shape = groups, scales, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, *rest = ctx.saved_tensors
        pairs, hidden = rest[: 2 * len(ctx.scales)], iter(rest[2 * len(ctx.scales) :])
        wanted = ctx.needs_input_grad[5:]
        rows_grad = grad.reshape(-1, grad.shape[-1])
        x_grad = torch.mm(rows_grad, weight) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = [None] * len(pairs)
        for start, stop, used in ctx.groups:
            part = rows_grad[start:stop]
            for pair in used:
                inner, a, b = next(hidden), 2 * pair, 2 * pair + 1
                if wanted[b]:
                    grads[b] = _plus(grads[b], part.t(), inner)
                if not wanted[a] and x_grad is None:
                    continue
                inner_grad = torch.mm(part, pairs[b]).mul_(ctx.scales[pair])
                if wanted[a]:
                    grads[a] = _plus(grads[a], inner_grad.t(), rows[start:stop])
                if x_grad is not None:
                    x_grad[start:stop].addmm_(inner_grad, pairs[a])
        return None if x_grad is None else x_grad.view(ctx.shape), None, None, None, None, *grads


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
                    grads[a] = _plus(grads[a], pairs[b].t(), update)
                if wanted[b]:
                    grads[b] = _plus(grads[b], update, pairs[a].t())
        return None if x_grad is None else x_grad.view(ctx.shape), None, None, None, None, *grads


def _plus(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right) if total is None else total.addmm_(left, right)
