"""Which parameters of a policy may change, and how: one small frozen class per method.

`method.prepare(model, robots)` makes the trainable state for those robots inside `model`; the knobs live in
the class. Heads are the robot's own and train with every method but `none`; where the base itself trains,
robots share one head.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from vla_adapt.adaptation.lora import TARGETS, Lora, SharedLora, activate
from vla_adapt.adaptation.method_contract import AdaptationMethod
from vla_adapt.adaptation.quantized import QLora
from vla_adapt.adaptation.unfreezing import LastN, Stage, Staged
from vla_adapt.policy.openvla import OpenVLA

__all__ = [
    "TARGETS", "AdaptationMethod", "Frozen", "Full", "LastN", "Lora", "Method", "Nothing", "QLora",
    "SharedLora", "Stage", "Staged", "activate",
]  # fmt: skip


class Frozen(AdaptationMethod):
    """The backbone stays frozen; only the robot's action head (and its condition) trains.

    With a readout or flow head what the backbone gives is computed once for every step of the data and kept
    on disk (`training.frozen_features`). `head_only` is its older name.

    Attributes:
        cache: keep features; where that cannot be, a note says why.
        cache_dir: where; None: beside each dataset, else in $VLA_ADAPT_CACHE or ~/.cache/vla_adapt.
    """

    kind: Literal["frozen", "head_only"] = "frozen"
    cache: bool = True
    cache_dir: str | None = None

    @field_validator("kind")
    @classmethod
    def _one_name(cls, kind: str) -> str:
        del kind
        return "frozen"

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Freeze the model."""
        del robots
        model.requires_grad_(False)


class Full(AdaptationMethod):
    """Every parameter trains; what comes out is a new base, not an adapter."""

    changes_base: ClassVar[bool] = True
    kind: Literal["full"] = "full"

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Train all of the model."""
        del robots
        model.requires_grad_(True)


class Nothing(AdaptationMethod):
    """Nothing trains: the base and its head as they are, with the robot's own statistics (a control)."""

    kind: Literal["none"] = "none"

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Freeze the model."""
        del robots
        model.requires_grad_(False)

    @property
    def trains_heads(self) -> bool:
        """Heads stay too."""
        return False


Method = Annotated[Lora | QLora | Frozen | LastN | Staged | Full | Nothing, Field(discriminator="kind")]
