"""`torch.compile` for the blocks of a policy: after a wait, fewer passes over memory between the products.

Block by block, so that the many equal blocks of a large model are compiled once. When texts of another length
come, the language model's blocks are compiled once more, for any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._functorch.config
from torch import nn

from vla_adapt.policy.openvla import OpenVLA

# Blocks share code and are compiled apart: each tower, with and without a gradient into them, any length.
# Past its limit, 8 if left alone, the compiler gives up without an error.
RECOMPILE_LIMIT = 64


@contextmanager
def compiled_blocks(
    model: OpenVLA, wanted: bool = True, backend: str = "inductor", activation_budget: float = 1.0
) -> Iterator[None]:
    """Inside, blocks of both towers and the language model, and the projector, run compiled if `wanted`.

    The first steps inside wait for the compiler (on a CPU for minutes, even with a tiny model). Names,
    weights and what is saved stay as they are; outside, the blocks are plain again.

    Args:
        model: whose blocks.
        wanted: if not, nothing happens.
        backend: of `torch.compile`.
        activation_budget: share (0..1] of the activations that a block would keep for its backward pass that
            it may keep; it computes the cheapest of the others again (Chen et al., 1604.06174, as PyTorch's
            partitioner solves it). For all blocks compiled from here on.
    """
    if not wanted:
        yield
        return
    blocks = _blocks(model)
    for block in blocks:
        block.compile(backend=backend)
    try:
        with (
            torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT),
            torch._functorch.config.patch(activation_memory_budget=activation_budget),
        ):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # type: ignore[assignment]


def _blocks(model: OpenVLA) -> list[nn.Module]:
    towers = model.vision_backbone
    return [
        *towers.featurizer.encoder.layer,
        *towers.fused_featurizer.encoder.layers,
        model.projector,
        *model.language_model.model.layers,
    ]
