"""What FSDP2 leaves of a learner on each process, and what it gathers there for a while; for a plan."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vla_adapt.training.launch_file import Layout
from vla_adapt.training.learner import Learner
from vla_adapt.training.parallelism import FSDP2

# Blocks that are whole at once: the one that runs, the buffer it came in (torch keeps it until the next one
# is gathered), and the next one's buffer.
GATHERED_BLOCKS = 3
# A block's gradients are whole twice: as they were made, and laid out for the reduction over processes.
WHOLE_GRADIENTS = 2


class ShardSizes:
    """Bytes of the parameters of `learner` when it lies on processes as `layout` says.

    Heads and helper losses are whole everywhere, as is all where nothing is sharded.
    """

    def __init__(self, learner: Learner, layout: Layout) -> None:
        self._layout, self._model = layout, learner.model
        sharded = learner.model.parameters() if layout.way == FSDP2 else ()
        self._elsewhere = {parameter: _elsewhere(parameter, layout.processes) for parameter in sharded}

    def elsewhere(self, parameter: nn.Parameter) -> int:
        """Bytes of it, and of its gradient, that other processes hold."""
        return self._elsewhere.get(parameter, 0)

    @property
    def all_elsewhere(self) -> int:
        """Bytes of all weights that other processes hold."""
        return sum(self._elsewhere.values())

    def kept(self, parameters: Iterable[nn.Parameter]) -> float:
        """The part of `parameters` that a process has itself, 0 .. 1."""
        parameters = list(parameters)
        whole = _bytes(parameters)
        return 1.0 - sum(map(self.elsewhere, parameters)) / whole if whole else 1.0

    def gathered(self) -> int:
        """Bytes of weights and gradients that are whole for a while, beside the shards.

        What lies outside of blocks (embeddings, projector, output layer) stays whole through a pass, and so
        do its gradients; of blocks a few at once, or all where their weights wait for the backward pass.
        """
        if self._layout.way != FSDP2:
            return 0
        blocks = [
            set(m.parameters()) for m in self._model.modules() if isinstance(m, GradientCheckpointingLayer)
        ]
        rest = set(self._model.parameters()).difference(*blocks)
        sizes = [_bytes(block) for block in blocks]
        largest = max(sizes, default=0)
        at_once = GATHERED_BLOCKS * largest if self._layout.gather_twice else sum(sizes) + largest
        gradients = max((_bytes(_trained(block)) for block in blocks), default=0)
        return _bytes(rest) + at_once + _bytes(_trained(rest)) + WHOLE_GRADIENTS * gradients


def _elsewhere(parameter: nn.Parameter, processes: int) -> int:
    """`fully_shard` cuts rows as `torch.chunk` does, and fills short shards up."""
    rows = parameter.shape[0]
    mine = -(-rows // processes)
    return (rows - mine) * (parameter.numel() // rows) * parameter.itemsize


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)
