"""AdamW over one parameter group per robot, warm-up and decay by step count, gradient clipping per robot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.optim.lr_scheduler import LambdaLR

_SMALLEST_IN_8_BITS, _BLOCK = 4096, 256  # numbers: of a tensor, and that share a constant (bitsandbytes)


class OptimizerConfig(BaseModel):
    """Knobs of the optimizer (Loshchilov & Hutter, 2019) and of its schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="8 bits: moments take a quarter (Dettmers et al., 2110.02861; bitsandbytes); paged: they "
        "move to the host's memory when the GPU's ends",
    )
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=50, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float = Field(default=1.0, gt=0, description="per robot, and of what robots share")


def make_optimizer(
    config: OptimizerConfig,
    groups: Mapping[str, list[torch.nn.Parameter]],
    steps: int,
    rates: Sequence[tuple[int, float]] | None = None,
    multiples: Mapping[str, float] | None = None,
    momenta: Mapping[str, float] | None = None,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """One AdamW with a parameter group per robot, and its schedule over `steps` steps.

    Fused: adapters are many small tensors, and an unfused step launches a kernel or more for each.

    Args:
        config: knobs.
        groups: parameters by name.
        steps: of the run; the decay runs over all of them.
        rates: from which step on which peak learning rate holds, with a warm-up of its own; None: that of
            `config` from step 0.
        multiples: learning rates of groups, relative to that; those not named have 1.
        momenta: beta1 of groups; those not named have that of `config`.
    """
    rates = rates or [(0, config.learning_rate)]
    params = [
        {
            "params": parameters,
            "name": name,
            "lr": config.learning_rate * (multiples or {}).get(name, 1.0),
            "betas": ((momenta or {}).get(name, config.betas[0]), config.betas[1]),
        }
        for name, parameters in groups.items()
        if parameters
    ]
    optimizer = _adamw(config, params)

    def factor(step: int) -> float:
        start, rate = [each for each in rates if each[0] <= step][-1]
        warm = min(1.0, (step - start + 1) / max(config.warmup_steps, 1)) * rate / config.learning_rate
        progress = min(1.0, step / max(steps, 1))
        if config.schedule == "linear":
            return warm * (1.0 - progress)
        if config.schedule == "cosine":
            return warm * 0.5 * (1.0 + math.cos(math.pi * progress))
        return warm

    return optimizer, LambdaLR(optimizer, factor)


def _adamw(config: OptimizerConfig, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The kind of AdamW that is asked for."""
    knobs: dict[str, Any] = {
        "lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay
    }  # fmt: skip
    if config.kind == "adamw":
        return torch.optim.AdamW(params, **knobs, fused=True)
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    if config.kind == "adamw_8bit":
        return bitsandbytes.optim.AdamW8bit(params, **knobs)
    return bitsandbytes.optim.PagedAdamW8bit(params, **knobs)


def saved_by_8_bits(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> int:
    """Bytes by which the moments are smaller than AdamW's; bitsandbytes leaves small tensors as they are."""
    if config.kind == "adamw":
        return 0
    large = sum(p.numel() for p in parameters if p.numel() >= _SMALLEST_IN_8_BITS)
    return int(2 * large * (4 - 1 - 4 / _BLOCK))


def clip_per_robot(groups: Iterable[list[torch.nn.Parameter]], clip_norm: float) -> list[torch.Tensor]:
    """Clip each robot's own gradient norm, so that one robot's spike never shrinks another's step.

    Returns:
        The norms before, which are not finite where a gradient is not.
    """
    return [torch.nn.utils.clip_grad_norm_(parameters, clip_norm) for parameters in groups]
