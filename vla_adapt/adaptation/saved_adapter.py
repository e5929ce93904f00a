"""A PEFT folder that the original's `finetune.py` saved: reading it, and checking it against its base."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_adapt.adaptation.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vla_adapt.adaptation.factors import Factor
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.openvla import OpenVLA

_OLD_WEIGHTS = "adapter_model.bin"


def read_saved_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Configuration and tensors of a PEFT folder.

    Raises:
        ValueError: files missing or broken, or another kind of adapter than LoRA.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"no {ADAPTER_CONFIG} in {folder}; wanted the adapter folder that finetune.py saved")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} cannot be read as a LoRA configuration ({error})"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} is of type {config.peft_type}; only LoRA adapters are read"
        )
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        file = folder / _OLD_WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"neither {ADAPTER_WEIGHTS} nor {_OLD_WEIGHTS} in {folder}; copy the whole adapter folder"
        )
    try:
        tensors = (
            load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    return config, tensors


def idle_modules(base: OpenVLA) -> set[str]:
    """The original's modules that take no part in the computation: last blocks, attention pooling, norms."""
    return {name.removesuffix(".weight") for name in base.stored_only if name.endswith(".weight")}


def check_complete(config: LoraConfig, factors: Mapping[str, Factor], base: Checkpoint) -> None:
    """Compare an adapter with the base's own modules, as the original's PEFT would have found them.

    Raises:
        ValueError: modules the base lacks, of another shape, or missing although the configuration names them.
    """
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in base.shapes.items()
        if name.endswith(".weight") and len(shape) in (2, 4) and "embed_tokens" not in name
    }
    if unknown := sorted(factors.keys() - weights.keys()):
        raise ValueError(
            f"the adapter has {len(unknown)} modules that base {base.directory} lacks (first: {unknown[0]}); name "
            "the base it was trained on, in the original's layout"
        )
    for module, factor in factors.items():
        if factor.weight_shape != weights[module]:
            raise ValueError(
                f"adapter of '{module}' is for {list(factor.weight_shape)}, base {base.directory} has "
                f"{list(weights[module])}; it belongs to another base"
            )
    wanted = {module for module in weights if check_target_module_exists(config, module)}
    if missing := sorted(wanted - factors.keys()):
        raise ValueError(
            f"the adapter lacks {len(missing)} of {len(wanted)} modules its configuration names (first: "
            f"{missing[0]}); copy the whole adapter folder again"
        )
