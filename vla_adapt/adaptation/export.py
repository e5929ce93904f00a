"""A bundle's adapter as a PEFT folder for somebody else: the original OpenVLA stack, or PEFT on our model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from safetensors.torch import save_file

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.factors import read_factors, write_factors
from vla_adapt.adaptation.folder import atomic_folder, claim_folder, told_disk_errors
from vla_adapt.adaptation.lora_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vla_adapt.adaptation.original_head import is_originals, stored_head
from vla_adapt.adaptation.original_names import factors_to_original
from vla_adapt.adaptation.original_statistics import DATASET_STATISTICS, norm_stats_entry
from vla_adapt.policy.heads import HEAD_JSON, HEAD_WEIGHTS

Target = Literal["openvla", "peft"]
TARGETS: tuple[Target, ...] = ("openvla", "peft")

# Fields that PEFT 0.11.1, which the original pins, reads; it refuses any other.
_OLD_FIELDS = (
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout",
    "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "fan_in_fan_out",
    "init_lora_weights", "modules_to_save",
)  # fmt: skip

_README = """# Adapter of {robot} for {stack}

LoRA of a vla_adapt bundle on the base with fingerprint `{base}`, {modules} modules. Load it with

    {load}

`{statistics}` holds the robot's action statistics (key `{robot}`): SI units of the unified slots
{slots}, gripper 1 open and 0 closed.{head}
"""


@dataclass(frozen=True)
class ExportReport:
    """What was written: modules adapted, tensors, and the largest rank among them."""

    robot: str
    modules: int
    tensors: int
    largest_rank: int


def export_bundle(
    bundle_dir: str | Path, to: Target, out: str | Path, overwrite: bool = False
) -> ExportReport:
    """Write a PEFT folder with statistics, and with the head's files unless it is the original's own head.

    Args:
        bundle_dir: the robot's bundle.
        to: `openvla`: the original's module names, with one adapter per fused q, k, v (the same function);
            `peft`: our own module names.
        out: folder to write; it appears whole or not at all.
        overwrite: replace an earlier export at `out`.

    Raises:
        ValueError: nothing adapted, an adapter that is not plain LoRA, an existing `out`, or a full disk.
    """
    claim_folder(out, ADAPTER_CONFIG, overwrite)
    if Path(out).resolve() == Path(bundle_dir).resolve():
        raise ValueError(f"{out} is the bundle itself; write to another folder")
    bundle = Bundle.load(bundle_dir)
    if bundle.adapter_config is None:
        raise ValueError(f"bundle of '{bundle.robot}' adapts nothing of the base; there is nothing to export")
    factors = read_factors(bundle.adapter_config, bundle.adapter)
    if to == "openvla":
        factors = factors_to_original(factors)
    config, tensors = write_factors(factors, bundle.adapter_config.use_rslora)
    with told_disk_errors(out), atomic_folder(out) as aside:
        (aside / ADAPTER_CONFIG).write_text(json.dumps(_fields(config), indent=2, sort_keys=True) + "\n")
        save_file(tensors, aside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        entry = {bundle.robot: norm_stats_entry(bundle.action_statistics)}
        (aside / DATASET_STATISTICS).write_text(json.dumps(entry, indent=2) + "\n")
        head = _copy_head(Path(bundle_dir), aside)
        (aside / "README.md").write_text(
            _readme(bundle, to, len(factors), entry[bundle.robot]["unified_slots"], head)
        )
    return ExportReport(
        bundle.robot, len(factors), len(tensors), max(factor.rank for factor in factors.values())
    )


def _fields(config: LoraConfig) -> dict[str, Any]:
    fields = config.to_dict()
    return {name: fields[name] for name in _OLD_FIELDS} | {
        "peft_type": "LORA",
        "target_modules": config.target_modules,
    }


def _copy_head(bundle_dir: Path, folder: Path) -> bool:
    """Copy the head's files unless it is the original's own; returns whether it is another."""
    config = stored_head(bundle_dir)
    if config is None or is_originals(config):
        return False
    for name in (HEAD_JSON, HEAD_WEIGHTS):
        (folder / name).write_bytes((bundle_dir / name).read_bytes())
    return True


def _readme(bundle: Bundle, to: Target, modules: int, slots: list[str], head: bool) -> str:
    model = {
        "openvla": "AutoModelForVision2Seq.from_pretrained(BASE, trust_remote_code=True)",
        "peft": "OpenVLA.from_pretrained(BASE)",
    }[to]
    about_head = (
        f"\nThe action head is vla_adapt's own (`{HEAD_JSON}`); `predict_action` does not know it."
        if head
        else ""
    )
    return _README.format(
        robot=bundle.robot,
        stack={"openvla": "the original OpenVLA stack", "peft": "PEFT on vla_adapt's OpenVLA"}[to],
        base=bundle.base_fingerprint[:12],
        modules=modules,
        load=f"PeftModel.from_pretrained({model}, DIR)",
        statistics=DATASET_STATISTICS,
        slots=", ".join(slots),
        head=about_head,
    )
