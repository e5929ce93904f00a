"""A PEFT folder that the original's `finetune.py` saved: reading it, and checking it against its base."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_adapt.adaptation.adapter_name import PREFIX
from vla_adapt.adaptation.factors import Factor
from vla_adapt.adaptation.lora_config import ADAPTER_WEIGHTS, read_lora_config
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.openvla import OpenVLA

_OLD_WEIGHTS = "adapter_model.bin"
_LORA = re.compile(r"\.lora_\w+\.")


@dataclass(frozen=True)
class SavedAdapter:
    """What a PEFT folder holds.

    Attributes:
        config: its `adapter_config.json`.
        tensors: the adapter's own, in PEFT's naming.
        base_copies: the base's own, by their original names: PEFT saves `lm_head` along when it is adapted.
    """

    config: LoraConfig
    tensors: dict[str, Tensor]
    base_copies: dict[str, Tensor]


def read_saved_adapter(folder: str | Path) -> SavedAdapter:
    """Read a PEFT folder; a `.bin` file is read without running any code in it.

    Raises:
        ValueError: files missing or broken, or another kind of adapter than LoRA.
    """
    folder = Path(folder)
    config = read_lora_config(folder)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        file = folder / _OLD_WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"neither {ADAPTER_WEIGHTS} nor {_OLD_WEIGHTS} in {folder}; copy the whole adapter folder"
        )
    try:
        tensors = (
            load_file(file)
            if file.name == ADAPTER_WEIGHTS
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    own = {key: tensor for key, tensor in tensors.items() if _LORA.search(key)}
    copies = {
        key.removeprefix(PREFIX).replace(".base_layer.", "."): tensor
        for key, tensor in tensors.items()
        if key not in own
    }
    if not own:
        raise ValueError(f"{file} holds no LoRA tensors; wanted the adapter that finetune.py saved")
    return SavedAdapter(config, own, copies)


def idle_modules(base: OpenVLA) -> set[str]:
    """The original's modules that take no part in the computation: last blocks, attention pooling, norms."""
    return {name.removesuffix(".weight") for name in base.stored_only if name.endswith(".weight")}


def check_complete(saved: SavedAdapter, factors: Mapping[str, Factor], base: Checkpoint) -> None:
    """Compare an adapter with the base's own modules, as the original's PEFT would have found them.

    Raises:
        ValueError: modules the base lacks, of another shape or missing although the configuration names them,
            or weights saved along that the base does not have.
    """
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in base.shapes.items()
        if name.endswith(".weight") and len(shape) in (2, 4) and "embed_tokens" not in name
    }
    if unknown := sorted(factors.keys() - weights.keys()):
        raise ValueError(
            f"the adapter has {len(unknown)} modules that base {base.directory} lacks (first: {unknown[0]}); "
            "name the base it was trained on, in the original's layout"
        )
    for module, factor in factors.items():
        if factor.weight_shape != weights[module]:
            raise ValueError(
                f"adapter of '{module}' is for {list(factor.weight_shape)}, base {base.directory} has "
                f"{list(weights[module])}; it belongs to another base"
            )
    wanted = {module for module in weights if check_target_module_exists(saved.config, module)}
    if missing := sorted(wanted - factors.keys()):
        raise ValueError(
            f"the adapter lacks {len(missing)} of {len(wanted)} modules its configuration names (first: "
            f"{missing[0]}); copy the whole adapter folder again"
        )
    for name, copy in saved.base_copies.items():
        if name not in base.tensors or not torch.equal(base.read(name).to(copy.dtype), copy):
            raise ValueError(
                f"'{name}', which PEFT saved along with the adapter, differs from base {base.directory}: it "
                "was trained on another base, or changed that weight in full"
            )
