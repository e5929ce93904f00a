"""`torch.compile` for the blocks of a policy: fewer passes over memory between the products, for a wait before.

Block by block, so that the many equal blocks of a large model are compiled once; with sizes left open, so that
texts of another length, or a run that resumes with one, need no other code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vla_adapt.policy.openvla import OpenVLA


@contextmanager
def compiled_blocks(model: OpenVLA, wanted: bool = True) -> Iterator[None]:
    """Inside, blocks of both towers and the language model, and the projector, run compiled if `wanted`.

    The first step inside waits for the compiler (minutes for a tiny model on a busy CPU). Names, weights and
    what is saved stay as they are; outside, the blocks are plain again.
    """
    blocks = _blocks(model) if wanted else []
    for block in blocks:
        block.compile(dynamic=True)
    try:
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
