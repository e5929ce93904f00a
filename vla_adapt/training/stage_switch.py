"""Which of the parameters that ever train do so in a step: the others rest, without gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vla_adapt.adaptation.method import AdaptationMethod
from vla_adapt.training.learner import Learner


class StageSwitch:
    """Outside of `at` every parameter that ever trains requires a gradient.

    So the optimizer, DistributedDataParallel and checkpoints, which ask for that, see the same parameters all
    along; a resting one has no gradient, and AdamW passes it over.
    """

    def __init__(self, learner: Learner, method: AdaptationMethod) -> None:
        self._method = method
        self._layers = len(learner.model.language_model.model.layers)
        self._trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self._resting: dict[int, list[nn.Parameter]] = {}

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Forward and backward passes of step number `step` (from 0) belong inside."""
        resting = self._at_rest(step)
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)

    def _at_rest(self, step: int) -> list[nn.Parameter]:
        start = [first for first, _ in self._method.rates(1.0) if first <= step][-1]
        if start not in self._resting:
            self._resting[start] = [
                parameter
                for name, parameter in self._trained.items()
                if not self._method.trains(name, step, self._layers)
            ]
        return self._resting[start]
