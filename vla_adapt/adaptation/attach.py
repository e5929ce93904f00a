"""Put a robot's adapter tensors onto a resident base model, completely or not at all."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from vla_adapt.adaptation.adapter_name import adapter_of, check_adapter_names, file_key
from vla_adapt.adaptation.factors import OUTSIDE
from vla_adapt.adaptation.routed import routed
from vla_adapt.policy.openvla import OpenVLA


def _resident_tensors(model: nn.Module, robot: str) -> dict[str, nn.Parameter]:
    """The adapter of `robot` that `model` holds, under the names of a PEFT file."""
    return {
        file_key(name): parameter for name, parameter in model.named_parameters() if adapter_of(name) == robot
    }


def attach_adapter(model: OpenVLA, robot: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> None:
    """Inject `config` under the name `robot` into `model` and load `tensors` into it.

    The weights of `model` itself stay as they are, whatever way of initializing `config` names (PiSSA and
    its like would take a part out of them).

    Raises:
        ValueError: a robot that no adapter can be named after, or a `config` with parameters outside of the
            adapter; tensors missing, left over, of another shape or not finite. `model` then keeps an inert
            adapter of that name (its B matrices are zero); the caller refuses the robot.
    """
    check_adapter_names([robot])
    if outside := [name for name in OUTSIDE if getattr(config, name, None)]:
        raise ValueError(
            f"adapter of '{robot}': its configuration has {outside[0]} {getattr(config, outside[0])!r}, "
            "which also changes other parameters of the base; train a plain LoRA adapter"
        )
    config = copy.copy(config)
    config.init_lora_weights = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several robots: meant
        inject_adapter_in_model(routed(config, model.rows), model, adapter_name=robot)
    load_adapter(model, robot, tensors)
    for parameter in _resident_tensors(model, robot).values():
        parameter.requires_grad_(False)


@torch.no_grad()
def load_adapter(model: nn.Module, robot: str, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` (plain PEFT names) into the adapter of `robot` that `model` holds already.

    Raises:
        ValueError: tensors missing, left over, of another shape or not finite; nothing is changed then.
    """
    resident = _resident_tensors(model, robot)
    check_tensors(robot, resident, tensors)
    for key, parameter in resident.items():
        parameter.copy_(tensors[key])


def check_tensors(robot: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming what an adapter lacks, has too much of, has in another shape or not finite."""
    missing = sorted(expected.keys() - got.keys())
    extra = sorted(got.keys() - expected.keys())
    if missing or extra:
        first = missing[0] if missing else extra[0]
        raise ValueError(
            f"adapter of '{robot}': {len(missing)} of {len(expected)} tensors are missing and {len(extra)} "
            f"do not belong (first: {first}); the folder is incomplete or of another base: restore it or "
            "train it again"
        )
    for key, wanted in expected.items():
        if got[key].shape != wanted.shape:
            raise ValueError(
                f"adapter of '{robot}': '{key}' is {list(got[key].shape)}, the base wants "
                f"{list(wanted.shape)}; it belongs to another base"
            )
        if not torch.isfinite(got[key]).all():
            raise ValueError(
                f"adapter of '{robot}': '{key}' holds NaN or infinity; restore it or train it again"
            )
