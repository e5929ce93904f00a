"""Low-rank adapters (LoRA, Hu et al., 2106.09685): one per robot, and optionally one for all of them."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from vla_adapt.adaptation.adapter_name import SHARED, check_adapter_names
from vla_adapt.adaptation.method_contract import AdaptationMethod
from vla_adapt.adaptation.routed import routed
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.suggest import did_you_mean

ATTENTION = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj)"
ALL_LINEAR = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2|fc3)"
TARGETS = {"attention": ATTENTION, "all_linear": ALL_LINEAR}


class SharedLora(BaseModel):
    """The adapter that all robots train together, besides their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0)


class Lora(AdaptationMethod):
    """One low-rank adapter per robot on a frozen base (Hu et al., 2021), and optionally one for all of them.

    `targets` is "attention", "all_linear" (language model, projector and both vision towers) or a regular
    expression over module names. The seed of the project uses r=16, alpha=32 on attention; OpenVLA's own
    fine-tuning r=32, alpha=16 on all linear layers. `shared` is applied beside each robot's own adapter, with
    the same targets, dropout and kind of scaling; bundles hold both as one adapter.
    """

    adapts: ClassVar[bool] = True
    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    targets: str = "attention"
    shared: SharedLora | None = None

    @field_validator("targets")
    @classmethod
    def _some_modules(cls, targets: str) -> str:
        if targets in TARGETS:
            return targets
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"got '{targets}', which is no regular expression ({error})") from None
        if targets.isidentifier():
            raise ValueError(
                f"got '{targets}'; {did_you_mean(targets, TARGETS)} A regular expression has to match whole "
                rf"names of modules, e.g. .*\.(q_proj|v_proj)"
            )
        return targets

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Inject the adapters; `routed.route` then sends rows through them.

        Raises:
            ValueError: robots that no adapter can be named after.
        """
        check_adapter_names(robots)
        config = self._config(model, self.rank, self.alpha)
        peft_model = get_peft_model(model, config, adapter_name=robots[0])
        for robot in robots[1:]:
            peft_model.add_adapter(robot, config)
        if self.shared is not None:
            peft_model.add_adapter(SHARED, self._config(model, self.shared.rank, self.shared.alpha))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def _config(self, model: OpenVLA, rank: int, alpha: int) -> LoraConfig:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=TARGETS.get(self.targets, self.targets),
            bias="none",
        )
        return routed(config, model.rows)


def activate(model: nn.Module, robot: str | None) -> None:
    """Send the next forward pass of `model` through the adapter of `robot` (None: the bare base).

    The shared adapter, if there is one, is passed too. Unlike PEFT's `set_adapter` this leaves
    `requires_grad` alone, so several robots' passes can share one backward pass. Adapters the model does not
    hold leave the bare base. For batches that mix robots see `routed.route`.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = [robot, SHARED] if robot is not None else []
