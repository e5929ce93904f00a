"""A robot's own and the shared adapter as one plain PEFT adapter, exactly: their ranks side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from vla_adapt.adaptation.adapter_name import SHARED, adapter_of, file_key
from vla_adapt.policy.openvla import OpenVLA


def concatenated(model: OpenVLA, robot: str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """What a bundle of `robot` holds: config and tensors (plain PEFT names, detached, on the CPU).

    With a shared adapter A = [A_own; A_shared] and B = [s_own B_own, s_shared B_shared], where s are the
    scalings, so that the config's alpha equals its rank r_own + r_shared. Without one, the robot's own
    adapter as it is.

    Raises:
        ValueError: the model has no adapter of that robot.
    """
    configs: dict[str, LoraConfig] = getattr(model, "peft_config", {})
    if robot not in configs or robot == SHARED:
        has = ", ".join(sorted(configs.keys() - {SHARED})) or "none"
        raise ValueError(f"no adapter of '{robot}' in this model; it has {has}")
    config = copy.copy(configs[robot])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    names = [robot, SHARED] if SHARED in configs else [robot]
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if adapter_of(name) == robot:
            layer = layers[name.rpartition(".lora_")[0]]
            tensors[file_key(name)] = _joined(layer, names, inner=".lora_A." in name, like=parameter)
    if len(names) > 1:
        config.r = config.lora_alpha = configs[robot].r + configs[SHARED].r
        config.use_rslora = False
    return config, tensors


def _joined(layer: LoraLayer, names: list[str], inner: bool, like: Tensor) -> Tensor:
    sides: Any = layer.lora_A if inner else layer.lora_B
    parts: list[Tensor] = [sides[name].weight.detach() for name in names]
    if not inner and len(names) > 1:
        parts = [part * layer.scaling[name] for part, name in zip(parts, names, strict=True)]
    return torch.cat(parts, dim=0 if inner else 1).to("cpu", like.dtype).contiguous()
