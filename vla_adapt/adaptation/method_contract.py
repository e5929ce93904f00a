"""What every way to adapt a policy says of itself, and does before and after training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from vla_adapt.policy.openvla import OpenVLA


class AdaptationMethod(BaseModel):
    """The knobs of one way to adapt; every one also has its name in recipes, `kind`.

    Attributes:
        adapts: the base gets one adapter per robot.
        changes_base: the base's own weights train, for all robots together, so a run leaves a new base. Then
            robots have one head together (but for their conditions).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    adapts: ClassVar[bool] = False
    changes_base: ClassVar[bool] = False

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Make what trains inside `model` for those robots, and nothing else require a gradient.

        Raises:
            ValueError: it does not fit the model.
        """
        raise NotImplementedError

    @property
    def trains_heads(self) -> bool:
        """Whether action heads ever train."""
        return True

    def trains(self, name: str, step: int, layers: int) -> bool:
        """Whether the parameter `name` of the learner, if it ever trains, does so in step number `step`.

        Args:
            name: as in `training.learner.Learner`: "model.projector...", "heads.ROBOT...".
            step: from 0.
            layers: of the language model.
        """
        del name, step, layers
        return True

    def rates(self, learning_rate: float) -> list[tuple[int, float]]:
        """From which step on (the first is 0) which peak learning rate holds; warm-up begins anew there.

        Args:
            learning_rate: of the optimizer, where nothing else is said.
        """
        return [(0, learning_rate)]

    def finish(self, model: OpenVLA) -> None:
        """Bring a trained model into the form in which it is judged, saved and served."""
