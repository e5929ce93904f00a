"""Which of a run's states bundles are made of, and when it ends: average, validation, best, early stop."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

from accelerate import Accelerator

from vla_adapt.training.early_stop import EarlyStop
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.resume import CheckpointKeeper
from vla_adapt.training.run_log import RunLog
from vla_adapt.training.run_state import RunState, Stateful
from vla_adapt.training.setting import Setting
from vla_adapt.training.validation import Metrics, Validator
from vla_adapt.training.weight_average import WeightAverage


class Verdict(NamedTuple):
    """What follows from a step: its metric (None: not validated), whether to save, whether to stop."""

    metric: float | None = None
    save: bool = False
    stop: bool = False


class Selection:
    """Made once parameters are where they train; every method is collective."""

    def __init__(self, accelerator: Accelerator, ranks: Ranks, setting: Setting) -> None:
        recipe = setting.recipe
        self._config, self._steps = recipe.validation, recipe.train.steps
        self.average = WeightAverage(setting.learner, recipe.train.ema) if recipe.train.ema else None
        self._validator = Validator(accelerator, ranks, setting) if self._config.every else None
        self._early_stop = EarlyStop(self._config.patience, self._config.min_delta)

    @property
    def extras(self) -> dict[str, Stateful]:
        """What of it belongs into checkpoints."""
        found: dict[str, Stateful] = {}
        if self.average is not None:
            found["average"] = self.average
        if self._validator is not None:
            found["early_stop"] = self._early_stop
        return found

    @property
    def stopped(self) -> bool:
        """Whether the run has ended early."""
        return self._early_stop.stopped

    def after(self, step: int, log: RunLog) -> Verdict:
        """Take in optimizer step number `step` (from 1); validate when it is time, and after the last."""
        if self.average is not None:
            self.average.update()
        if self._validator is None or (step % self._config.every and step != self._steps):
            return Verdict()
        with nullcontext() if self.average is None else self.average.in_place():
            found = self._validator(step / self._steps)
        metric = mean_over_robots(found, self._config.metric)
        best = self._early_stop.add(step, metric)
        log.validation(step, found, f"{self._config.metric} {metric:.4g}{', the best' if best else ''}")
        return Verdict(metric if math.isfinite(metric) else None, best, self.stopped)

    def choose(self, step: int, state: RunState, keeper: CheckpointKeeper) -> str:
        """Put the weights that bundles are made of into the learner, after training ended at `step`.

        Returns:
            Which these are, as a phrase; empty where there was nothing to choose.
        """
        if not self.extras:
            return ""
        told = f"{step} of {self._steps} steps"
        stop = self._early_stop
        if stop.stopped:
            told += f", {stop.why()}"
        best, metric = stop.best_step, stop.best
        if self._validator is not None and self._config.use_best and best is not None:
            fault = "" if best == step else keeper.restore_best(best, state)
            told += f"; weights of step {step if fault else best}"
            told += f" ({fault})" if fault else f", best {self._config.metric} {metric:.4g} in validation"
        if self.average is not None:
            self.average.put_in()
            told += f"; averaged with decay {self.average.decay:g}"
        return told


def mean_over_robots(found: Metrics, metric: str) -> float:
    """Every robot has one say, however many windows it has."""
    return sum(metrics[metric] for metrics in found.values()) / len(found)
