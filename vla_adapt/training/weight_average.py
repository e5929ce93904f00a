"""A running average of all that trains, which validation and bundles use in place of the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class WeightAverage:
    """Exponential moving average over optimizer steps (Polyak & Juditsky, 1992), in float32 for any weights.

    Weights of k steps ago count as decay^k, and all counts are scaled to sum to 1, as Adam does for its
    moments (Kingma & Ba, 1412.6980): no initial weight is left in, and after one step the average is the
    weights themselves. It takes effect slowly where 1 / (1 - decay) steps are many.

    It is the same on all processes, without communication; of parameters in shards (DTensor) each process
    averages its own, and only `state_dict` is collective.

    Args:
        module: already where it trains (wrapped, moved, sharded).
        decay: 0 < decay < 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        assert 0 < decay < 1, "checked by the recipe"
        self.decay = decay
        self.updates = 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {
            name: p.detach().clone().to(torch.float32) for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self.updates += 1
        share = (1.0 - self.decay) / (1.0 - self.decay**self.updates)
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter.detach().to(torch.float32), share)

    @torch.no_grad()
    def put_in(self) -> None:
        """Overwrite the weights with their average."""
        if self.updates:
            for name, parameter in self._parameters.items():
                parameter.copy_(self.average[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module has the averaged weights; then its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the average by parameter name; whole on rank 0, where it is in shards."""
        return {"updates": self.updates, "average": {n: _whole(t) for n, t in self.average.items()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take over what `state_dict` gave for the same parameters."""
        self.updates = state_dict["updates"]
        for name, average in self.average.items():
            average.copy_(_like(average, state_dict["average"][name]))


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor, shards put together on the CPU of rank 0; nothing on other ranks."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole[:0].cpu()


def _like(place: Tensor, whole: Tensor) -> Tensor:
    """This process's part of `whole`, where `place` is in shards."""
    if not isinstance(place, DTensor):
        return whole
    return distribute_tensor(whole.to(place.device), place.device_mesh, place.placements, src_data_rank=None)
