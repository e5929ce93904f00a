"""What holds around all steps of a run so that each takes less time, as its recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import TrainConfig
from vla_adapt.training.compiled import compiled_blocks
from vla_adapt.training.replayed_towers import ReplayedTowers


@contextmanager
def faster_steps(model: OpenVLA, train: TrainConfig) -> Iterator[None]:
    """Inside, blocks run compiled and the towers from a recording, if `train` says so."""
    with ExitStack() as opened:
        opened.enter_context(compiled_blocks(model, train.compile, activation_budget=train.activation_budget))
        if train.cuda_graphs:
            opened.enter_context(ReplayedTowers(model).used())
        yield
