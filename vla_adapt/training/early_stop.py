"""Which validation was the best, and when there is no more to hope for: knobs and state."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ValidationConfig(BaseModel):
    """Validation on held-out episodes while a run trains. Off unless `every` is set.

    It draws nothing from the run's random generators: losses and weights are those of a run without it.

    Attributes:
        every: steps between validations; the last step is validated too. 0: never.
        windows: per robot, a fixed set, spread evenly over the held-out episodes and within each.
        metric: what chooses the best state, as the mean over robots: "loss" (of the head, without label
            smoothing) or "error" (mean absolute error in half action ranges, of predictions that are given
            the true tokens before where the head has tokens). Less is better.
        use_best: write bundles from the best state; false: from the last. The best one's checkpoint is kept.
            What was chosen on held-out episodes looks a little better on them than it is.
        patience: stop after so many validations in a row without improvement; 0: never.
        min_delta: what counts as an improvement, for `patience`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    every: int = Field(default=0, ge=0)
    windows: int = Field(default=128, gt=0)
    metric: Literal["loss", "error"] = "loss"
    use_best: bool = True
    patience: int = Field(default=0, ge=0)
    min_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _refuse_knobs_without_effect(self) -> ValidationConfig:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if not self.every and idle:
            raise ValueError(
                f"{idle[0]} has no effect without validation; set validation.every to the steps between "
                "validations, or leave it out"
            )
        if self.min_delta and not self.patience:
            raise ValueError(
                f"min_delta {self.min_delta} has no effect without patience; set validation.patience, or "
                "leave it out"
            )
        return self


class EarlyStop:
    """Remembers the best metric (the least; NaN is none), and how long none was better by `min_delta`."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.step = 0
        self.best_step: int | None = None
        self.best = self._reference = math.inf
        self._waited = 0

    def add(self, step: int, metric: float) -> bool:
        """Account for the validation after `step` steps; whether it is the best so far."""
        self.step = step
        if metric < self._reference - self.min_delta:
            self._reference, self._waited = metric, 0
        else:
            self._waited += 1
        if not metric < self.best:
            return False
        self.best, self.best_step = metric, step
        return True

    @property
    def stopped(self) -> bool:
        """Whether training should end."""
        return 0 < self.patience <= self._waited

    def why(self) -> str:
        """The reason to stop, as a phrase."""
        by = f" by {self.min_delta:g}" if self.min_delta else ""
        best = "none was finite" if self.best_step is None else f"best {self.best:.4g} at {self.best_step}"
        waited = f"no improvement{by} in {self._waited} validation(s)"
        return f"stopped early after step {self.step}: {waited}, {best}"

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {
            "step": self.step, "best_step": self.best_step, "best": self.best,
            "reference": self._reference, "waited": self._waited,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.best_step, self.best = (state_dict[key] for key in ("step", "best_step", "best"))
        self._reference, self._waited = state_dict["reference"], state_dict["waited"]
