"""What holds around all steps of a run so that each takes less time, as its recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import TrainConfig
from vla_adapt.training.compiled import compiled_blocks
from vla_adapt.training.replayed_towers import ReplayedTowers


@contextmanager
def faster_steps(model: OpenVLA, train: TrainConfig, processes: int) -> Iterator[None]:
    """Inside, with `train.compile`, blocks run compiled, and towers on a GPU from a recording.

    Not the latter where gradients add up over passes or meet those of other processes: those of a recording
    lie where its next pass writes.
    """
    with compiled_blocks(model, train.compile, activation_budget=train.activation_budget):
        if train.compile and not train.checkpointing and processes == train.accumulate == 1:
            with ReplayedTowers(model).used():
                yield
        else:
            yield
