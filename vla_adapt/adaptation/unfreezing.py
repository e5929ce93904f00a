"""Training parts of the base itself: its last layers, or ever more of it (Howard & Ruder, 1801.06146).

What trains is the base, for all robots together, so a run leaves a new base.
"""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_adapt.adaptation.method_contract import AdaptationMethod
from vla_adapt.policy.openvla import OpenVLA

_VISION, _PROJECTOR, _LANGUAGE = "model.vision_backbone.", "model.projector.", "model.language_model."
_LAYERS, _NORM = "model.language_model.model.layers.", "model.language_model.model.norm."


class LastN(AdaptationMethod):
    """The last `layers` of the language model with its final norm, and the heads; the rest is frozen.

    Attributes:
        layers: how many.
        projector: train the projector from image features too.
    """

    changes_base: ClassVar[bool] = True
    kind: Literal["last_n"] = "last_n"
    layers: int = Field(default=2, gt=0)
    projector: bool = True

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Train those parts of the model.

        Raises:
            ValueError: the model has fewer layers.
        """
        del robots
        layers = _layers_of(model, self.layers, "adaptation.layers")
        for name, parameter in model.named_parameters():
            name = f"model.{name}"
            wanted = _is_last(name, self.layers, layers) or (self.projector and name.startswith(_PROJECTOR))
            parameter.requires_grad_(wanted)


class LastLayers(BaseModel):
    """The last `last_n` layers of the language model with its final norm."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    last_n: int = Field(gt=0)


class Stage(BaseModel):
    """What trains from a step on.

    Attributes:
        from_step: the first step, from 0.
        train: parts: "head" (with its condition), "projector", "vision" (both towers), "language" (with
            embeddings and output layer), "all", or {last_n: k} layers of the language model.
        learning_rate: peak of this stage; None: that of the optimizer. Warm-up begins anew in every stage,
            the decay of the schedule runs over the whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    from_step: int = Field(ge=0)
    train: tuple[Literal["head", "projector", "vision", "language", "all"] | LastLayers, ...] = Field(
        min_length=1
    )
    learning_rate: float | None = Field(default=None, gt=0)

    def wants(self, name: str, layers: int) -> bool:
        """Whether the learner's parameter `name` is of one of the parts; helper losses always train."""
        if not name.startswith(("model.", "heads.")):
            return True
        return any(_is_of(name, part, layers) for part in self.train)


class Staged(AdaptationMethod):
    """Progressive unfreezing: a list of stages, each with its parts and learning rate.

    What trains for the first time starts with fresh optimizer state; what pauses keeps its own.
    """

    changes_base: ClassVar[bool] = True
    kind: Literal["staged"] = "staged"
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Staged:
        starts = [stage.from_step for stage in self.stages]
        if starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
            raise ValueError(f"stages start at steps {starts}; wanted 0 first, then each later than the last")
        return self

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Let all that any stage trains require a gradient; `trains` tells them apart.

        Raises:
            ValueError: the model has fewer layers than a stage trains.
        """
        del robots
        parts = [part for stage in self.stages for part in stage.train]
        most = max((part.last_n for part in parts if isinstance(part, LastLayers)), default=0)
        layers = _layers_of(model, most, "adaptation.stages: last_n")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(stage.wants(f"model.{name}", layers) for stage in self.stages))

    @property
    def trains_heads(self) -> bool:
        """Whether any stage does."""
        return any(part in ("head", "all") for stage in self.stages for part in stage.train)

    def trains(self, name: str, step: int, layers: int) -> bool:
        """Whether the stage of `step` trains that parameter."""
        return [stage for stage in self.stages if stage.from_step <= step][-1].wants(name, layers)

    def rates(self, learning_rate: float) -> list[tuple[int, float]]:
        """First step and learning rate of every stage."""
        return [(stage.from_step, stage.learning_rate or learning_rate) for stage in self.stages]


def _is_of(name: str, part: str | LastLayers, layers: int) -> bool:
    if isinstance(part, LastLayers):
        return _is_last(name, part.last_n, layers)
    places = {"head": "heads.", "projector": _PROJECTOR, "vision": _VISION, "language": _LANGUAGE, "all": ""}
    return name.startswith(places[part])


def _is_last(name: str, count: int, layers: int) -> bool:
    if name.startswith(_NORM):
        return True
    return name.startswith(_LAYERS) and int(name.removeprefix(_LAYERS).split(".")[0]) >= layers - count


def _layers_of(model: OpenVLA, wanted: int, key: str) -> int:
    layers = len(model.language_model.model.layers)
    if wanted > layers:
        raise ValueError(f"{key}: asked for the last {wanted} layers, the language model has {layers}")
    return layers
