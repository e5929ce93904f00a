"""PyTorch's counter of floating point operations, taught the kernels it does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _attention_flops(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Two products of a head's rows and columns (PyTorch's counter knows the GPU kernels only)."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Five products where the forward pass has two: the scores are computed again."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (3 * width + 2 * value[-1])


def _product_flops(total: Any, left: Any, right: Any, *, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


_UNKNOWN = {
    torch.ops.aten.addmm_: _product_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class _Untold:
    """Stands in for the counter's tracker of modules, whose hooks refuse `torch.autograd.grad` in a forward
    pass (the penalty on DANN's adversary has one); only the total is asked for.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which then also knows the CPU's attention kernels and products added in place."""
    counter = FlopCounterMode(display=False, custom_mapping=_UNKNOWN)
    counter.mod_tracker = _Untold()  # type: ignore[assignment]
    return counter
