"""Run training code on tensors without numbers, counting the bytes that are alive at every moment.

Floating tensors (weights, activations, gradients) are PyTorch's fake tensors: shapes and kernels are those of
the device, no memory is touched. Integers and masks stay real, so that code that looks at them goes its way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)

_LIKE = (
    _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.new_empty.default,
    _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.empty_like.default,
)  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """Bytes alive at one moment; `gradients` of them are in `.grad` of parameters."""

    live: int = 0
    gradients: int = 0


class Rehearsal(TorchDispatchMode):
    """Inside, operations on a module on the meta device (see `materialize`) are rehearsed.

    Attributes:
        live: bytes of the tensors that are alive.
        peak: when most bytes were.
        elsewhere: bytes of a parameter's gradient that other processes hold; they are not alive here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: Callable[[nn.Parameter], int] = lambda _: 0
        self.live = 0
        self.peak = Moment()
        self._gradients = self._gone = 0
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def materialize(self, module: nn.Module) -> None:
        """Give a module that was built on the meta device fake tensors, and count its gradients."""
        with self:
            module.to_empty(device="cpu")
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._add_gradient)

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak = Moment(self.live, self._gradients)

    def zero_grad(self, module: nn.Module) -> None:
        """Free the gradients of `module`."""
        module.zero_grad(set_to_none=True)
        self.live += self._gone
        self._gradients = self._gone = 0

    def _add_gradient(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if not getattr(storage, "_counted_as_gradient", False):
            storage._counted_as_gradient = True  # type: ignore[attr-defined]
            gone = self.elsewhere(parameter)
            self._gradients += storage.nbytes() - gone
            self._gone += gone
            self.live -= gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            if not isinstance(tensor, FakeTensor) and not tensor.is_meta:
                self._known.setdefault(tensor.untyped_storage(), 0)  # was there before: not ours to count
        made = self._run(func, args, kwargs, given)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._see(tensor)
        return made

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        device = kwargs.get("device")
        if any(tensor.is_meta for tensor in given) or (
            device is not None and torch.device(device).type == "meta"
        ):
            if device is None or torch.device(device).type == "meta":
                return func(*args, **kwargs)
        elif not any(isinstance(tensor, FakeTensor) for tensor in given):
            return self._real(func, args, kwargs, bool(given))
        if func in _LIKE and not kwargs.get("dtype", torch.float32).is_floating_point:
            return func(torch.empty(args[0].shape, dtype=torch.bool), *args[1:], **kwargs)
        if func in _INDEXING:
            args = (args[0], _by_number(args[1]), *args[2:])
        if func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], FakeTensor):
            return args[0]  # a real tensor is to take in numbers that are not there: it keeps its own
        with self._fake:
            return func(*args, **kwargs)

    def _real(self, func: Any, args: Any, kwargs: dict[str, Any], from_tensors: bool) -> Any:
        """New floating tensors that are not scalars are fake, all else is really computed."""
        if not from_tensors:
            with self._fake:
                made = func(*args, **kwargs)
            if isinstance(made, Tensor) and made.is_floating_point() and made.dim():
                return made
        return func(*args, **kwargs)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if storage in self._known or not size:
            return
        self._known[storage] = size
        self.live += size
        if self.live > self.peak.live:
            self.peak = Moment(self.live, self._gradients)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _by_number(indices: Any) -> list[Any]:
    """Indices in which real masks are replaced by the places where they are True."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += list(index.nonzero().unbind(1))
        else:
            found.append(index)
    return found
