"""Copies of 32-bit adapters in the dtype of autocast, made in a few launches for all layers of a pass.

Left to each layer, converting its small matrices and their gradients is a third of all that a GPU is asked to
start, and with hundreds of adapted layers it waits for Python to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla_adapt.adaptation.adapted_linear import Narrow
from vla_adapt.adaptation.routed import RoutedLinear


class NarrowCopies:
    """Copies of the adapters that a model's routed linear layers have now, in `narrow` where it is of use."""

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, RoutedLinear)]
        self._places = [
            (layer, name) for layer in layers for name in layer.lora_A if layer.takes_copies(name)
        ]
        self._sides: list[Any] = [
            side[name] for layer, name in self._places for side in (layer.lora_A, layer.lora_B)
        ]
        self._sources: list[Tensor] = []
        self._scales: list[float] = []
        self._plain: list[Tensor] = []
        self._scaled: list[Tensor] = []

    @torch.no_grad()
    def refresh(self) -> bool:
        """Bring the copies up to date, before a pass whose gradients are wanted.

        Returns:
            Whether they hold. Not so without autocast, where nothing is converted, nor for adapters in
            shards, which exist as a whole only while their layer runs.
        """
        sources = [side.weight for side in self._sides]
        if not sources or any(isinstance(weight, DTensor) for weight in sources):
            return False
        device = sources[0].device
        if not torch.is_autocast_enabled(device.type):
            return False
        scales = [layer.scaling[name] for layer, name in self._places for _ in range(2)]
        dtype = torch.get_autocast_dtype(device.type)
        made = self._plain and self._plain[0].dtype == dtype and self._plain[0].device == device
        if not made or scales != self._scales or not _same(sources, self._sources):
            self._make(sources, scales, dtype)
        # `data`: what a pass holds for its backward pass may be written again, with the same numbers.
        at_once: Any = torch  # PyTorch's operations on lists have no public names
        at_once._foreach_copy_([copy.data for copy in self._plain], sources)
        at_once._foreach_copy_([copy.data for copy in self._scaled], sources)
        at_once._foreach_mul_([copy.data for copy in self._scaled], scales)
        return True

    def _make(self, sources: list[Tensor], scales: list[float], dtype: torch.dtype) -> None:
        self._sources, self._scales = sources, scales
        self._plain = [torch.empty_like(weight, dtype=dtype) for weight in sources]
        self._scaled = [torch.empty_like(weight, dtype=dtype) for weight in sources]
        for number, (layer, name) in enumerate(self._places):
            pair = slice(2 * number, 2 * number + 2)
            layer.narrow[name] = Narrow(*self._plain[pair], *self._scaled[pair])


def _same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))
