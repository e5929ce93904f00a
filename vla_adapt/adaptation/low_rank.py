"""y += scale * (x A^T) B^T with another (A, B, scale) for each block of rows, as one step of autograd."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# One more kernel launch costs about as much as this many floating point operations of a large product.
LAUNCH_FLOPS = {"cpu": 5e5, "cuda": 1.5e9}
# Concatenating the matrices costs about as much as this many more rows.
CONCATENATION_ROWS = 8
# PyTorch 2.8 and later; products of 16-bit factors in 32 bits, on a GPU only.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()


class Block(NamedTuple):
    """Rows [start, stop) go through pair number `pair`.

    `first` blocks share no row with each other; the others come after all first blocks.
    """

    start: int
    stop: int
    pair: int
    first: bool = True


class Pair(NamedTuple):
    """One adapter of one layer; its update of the weight is `scale * B @ A`."""

    A: Float[Tensor, "r F"]
    B: Float[Tensor, "O r"]
    scale: float


def add_low_rank(
    out: Float[Tensor, "*rows O"],
    x: Float[Tensor, "*rows F"],
    blocks: list[Block],
    pairs: list[Pair],
    dense: bool | None = None,
    masks: dict[Any, Tensor] | None = None,
) -> Float[Tensor, "*rows O"]:
    """Add to `out`, in place, what each block's pair makes of its rows of `x` (counted over leading axes).

    Two ways give the same numbers. By segments: two small products per block. Dense: the matrices of all
    pairs are concatenated, and two products over all rows, with a mask between them, do the work; more
    arithmetic, fewer launches.

    Args:
        out: nothing else may need its present value.
        x: of the dtype of `out` and of all matrices.
        blocks: rows in no block stay as they are; rows in several get each one's addition.
        pairs: each is used by some block.
        dense: force one way; None picks the cheaper one by an estimate.
        masks: where masks of the dense way are kept, for layers that want the same one.
    """
    rows = x.numel() // x.shape[-1]
    weights = [weight for pair in pairs for weight in (pair.A, pair.B)]
    if dense_is_cheaper(rows, len(blocks), pairs) if dense is None else dense:
        mask = _mask(rows, blocks, pairs, {} if masks is None else masks)
        return _Dense.apply(out, x, mask, [len(pair.A) for pair in pairs], *weights)  # type: ignore[no-any-return]
    return _Segments.apply(out, x, blocks, [pair.scale for pair in pairs], *weights)  # type: ignore[no-any-return]


def dense_is_cheaper(rows: int, blocks: int, pairs: list[Pair]) -> bool:
    """Whether the launches that one dense product saves are worth more than the arithmetic it adds."""
    width = sum(pair.A.numel() + pair.B.numel() for pair in pairs)
    launch = LAUNCH_FLOPS.get(pairs[0].A.device.type, LAUNCH_FLOPS["cuda"])
    return 2 * width * (rows + CONCATENATION_ROWS) < 2 * (blocks - 1) * launch


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, blocks: list[Block], scales: list[float], *weights: Tensor):
        rows_out, rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        hidden = []
        for start, stop, pair, _ in blocks:
            inner = torch.mm(rows[start:stop], weights[2 * pair].t()).mul_(scales[pair])
            rows_out[start:stop].addmm_(inner, weights[2 * pair + 1].t())
            hidden.append(inner)
        ctx.mark_dirty(out)
        ctx.save_for_backward(rows, *weights, *hidden)
        ctx.blocks, ctx.scales, ctx.shape = blocks, scales, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        blocks: list[Block] = ctx.blocks
        rows, *rest = ctx.saved_tensors
        weights, hidden = rest[: -len(blocks)], rest[-len(blocks) :]
        wanted = ctx.needs_input_grad
        rows_grad = grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor | None] = [None] * len(weights)
        x_grad = _empty_or_zeros(rows, blocks) if wanted[1] else None
        for (start, stop, pair, first), inner in zip(blocks, hidden, strict=True):
            a, b = 2 * pair, 2 * pair + 1
            part = rows_grad[start:stop]
            if wanted[4 + b]:
                grads[b] = plus(grads[b], part.t(), inner)
            if wanted[4 + a] or x_grad is not None:
                inner_grad = torch.mm(part, weights[b]).mul_(ctx.scales[pair])
                if wanted[4 + a]:
                    grads[a] = plus(grads[a], inner_grad.t(), rows[start:stop])
                if x_grad is not None and first:
                    torch.mm(inner_grad, weights[a], out=x_grad[start:stop])
                elif x_grad is not None:
                    x_grad[start:stop].addmm_(inner_grad, weights[a])
        return grad, None if x_grad is None else x_grad.view(ctx.shape), None, None, *grads


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, mask: Tensor, ranks: list[int], *weights: Tensor):
        rows_out, rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        inner_weights, outer_weights = torch.cat(weights[0::2]), torch.cat(weights[1::2], dim=1)
        inner = torch.mm(rows, inner_weights.t()).mul_(mask)
        rows_out.addmm_(inner, outer_weights.t())
        ctx.mark_dirty(out)
        ctx.save_for_backward(rows, inner_weights, outer_weights, inner, mask)
        ctx.ranks, ctx.shape = ranks, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, inner_weights, outer_weights, inner, mask = ctx.saved_tensors
        rows_grad = grad.reshape(-1, grad.shape[-1])
        inner_grad = torch.mm(rows_grad, outer_weights).mul_(mask)
        x_grad = torch.mm(inner_grad, inner_weights).view(ctx.shape) if ctx.needs_input_grad[1] else None
        grads: list[Tensor | None] = [None] * (2 * len(ctx.ranks))
        if any(ctx.needs_input_grad[4:]):
            grads[0::2] = torch.mm(inner_grad.t(), rows).split(ctx.ranks)
            grads[1::2] = torch.mm(rows_grad.t(), inner).split(ctx.ranks, dim=1)
        return grad, x_grad, None, None, *grads


def _empty_or_zeros(rows: Tensor, blocks: list[Block]) -> Tensor:
    """A tensor like `rows`, zeroed unless first blocks will write all of it."""
    written = sum(block.stop - block.start for block in blocks if block.first)
    return torch.empty_like(rows) if written == len(rows) else torch.zeros_like(rows)


def plus(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`total` plus a product, in place; `dtype`: of the sum, where the factors are of a narrower one."""
    if dtype is None or left.dtype == dtype:
        return torch.mm(left, right) if total is None else total.addmm_(left, right)
    if _WIDE_PRODUCTS and left.is_cuda and not torch.compiler.is_compiling():
        product = torch.mm(left, right, out_dtype=dtype)
    else:
        product = torch.mm(left, right).to(dtype)
    return product if total is None else total.add_(product)


def _mask(rows: int, blocks: list[Block], pairs: list[Pair], known: dict[Any, Tensor]) -> Tensor:
    """[rows, all ranks]: a pair's scale where its blocks' rows meet its ranks, else zero."""
    like = pairs[0].A
    shape = tuple((len(pair.A), pair.scale) for pair in pairs)
    key = (rows, tuple(blocks), shape, like.dtype, like.device, torch.is_inference_mode_enabled())
    if key not in known:
        ends = list(accumulate(rank for rank, _ in shape))
        mask = like.new_zeros(rows, ends[-1])
        for start, stop, pair, _ in blocks:
            mask[start:stop, ends[pair] - shape[pair][0] : ends[pair]] = shape[pair][1]
        known[key] = mask
    return known[key]
