"""Merge a robot's adapter into a full checkpoint of the original layout, and prove that nothing was lost.

Merging can go wrong without a sound: a weight rounds the update away, a second merge adds it twice (a known
case fell from 93 % to 0 % success). So the merged checkpoint is read back from disk and has to answer as the
adapted model did, or it is not left behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.factors import Factor, read_factors
from vla_adapt.adaptation.folder import atomic_folder, claim_folder, told_disk_errors
from vla_adapt.adaptation.merge_check import (
    TOLERANCES,
    MergeReport,
    answers,
    difference,
    golden_of,
    hidden_and_logits,
)
from vla_adapt.adaptation.original_head import describe, is_originals
from vla_adapt.adaptation.original_statistics import DATASET_STATISTICS, norm_stats_entry
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.heads import HEAD_JSON, ActionHead, load_head, save_head
from vla_adapt.policy.openvla import OpenVLA

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Progress = Callable[[str, int, int], None]  # (what, done, total)


def merge_bundle(
    bundle_dir: str | Path,
    base_dir: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    check_dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> MergeReport:
    """Write base + adapter as one checkpoint folder; it appears whole and checked, or not at all.

    The sum is made in float32 and rounded once. The adapted model runs first and is gone before the merged
    checkpoint is read back: the peak is about one model in `check_dtype` (for 7B, 30 GB in float32, 15 GB in
    bfloat16), and while writing, the rounded copies in `dtype` that replace its weights one by one.

    Args:
        bundle_dir: the robot's bundle.
        base_dir: checkpoint folder it was trained on.
        out: folder to write.
        dtype: of the weights written; None keeps the base's own.
        tolerance: largest `MergeReport.difference` allowed; None takes `TOLERANCES` of `dtype`. The golden
            chunk may differ by the bundle's own tolerance if that is larger.
        check_dtype: number type both models run in.
        device: where they run.
        overwrite: replace an earlier merged checkpoint at `out`.
        progress: called with what is being done.

    Raises:
        ValueError: another base, nothing to merge, an existing `out`, no room, a difference not small.
    """
    claim_folder(out, "config.json", overwrite)
    _refuse_source(Path(out), bundle_dir, base_dir)
    bundle = Bundle.load(bundle_dir)
    if bundle.adapter_config is None:
        raise ValueError(f"bundle of '{bundle.robot}' adapts nothing of the base; there is nothing to merge")
    factors, golden = read_factors(bundle.adapter_config, bundle.adapter), golden_of(bundle)
    stored = Checkpoint(base_dir)
    dtype = dtype or _stored_dtype(stored)
    _check_room(Path(out), stored, dtype)

    progress("running the adapted model", 0, 1)
    policy = bundle.attach(OpenVLA.from_pretrained(base_dir, check_dtype, device))
    if check_dtype == torch.float32:
        bundle.verify_policy(policy)
    wanted, bare = answers(policy, golden), hidden_and_logits(policy, golden, adapted=False)
    with told_disk_errors(out), atomic_folder(out) as aside:
        merge_factors(policy.model, factors, dtype, progress)
        progress("writing", 0, 1)
        head = _write(policy, dtype, aside)
        del policy  # its memory is needed for the merged model
        progress("checking what was written", 0, 1)
        merged = _reload(bundle, head, aside, check_dtype, device)
        got = answers(merged, golden)
        report = MergeReport(
            robot=bundle.robot,
            modules=len(factors),
            dtype=dtype,
            difference=difference(got.tensors, wanted.tensors),
            chunk_difference=merged.difference(got.chunk, wanted.chunk),
            effect=difference(bare, wanted.tensors),
            tolerance=TOLERANCES[dtype] if tolerance is None else tolerance,
            notes=tuple(_notes(bundle, head)),
        )
        report.check(golden)
    return report


def merge_factors(
    model: nn.Module, factors: dict[str, Factor], dtype: torch.dtype, progress: Progress
) -> None:
    """Add every factor to its weight in float32, round to `dtype` and take the adapter layers off `model`."""
    for done, (module, factor) in enumerate(factors.items()):
        progress("merging", done, len(factors))
        parent, _, child = module.rpartition(".")
        layer = model.get_submodule(module)
        assert isinstance(layer, BaseTunerLayer), f"{module} bears no adapter"
        plain = layer.get_base_layer()
        weight = plain.weight
        assert isinstance(weight, Tensor)
        merged = weight.detach().float() + factor.delta().to(weight.device)
        plain.weight = nn.Parameter(merged.to(dtype), requires_grad=False)
        setattr(model.get_submodule(parent), child, plain)


def _write(policy: RobotPolicy, dtype: torch.dtype, folder: Path) -> ActionHead:
    """Checkpoint, statistics and, unless it is the original's own, the head; returns the head."""
    model, head = policy.model.to(dtype), policy.head
    entry = norm_stats_entry(policy.action_statistics)
    model.config.norm_stats[policy.robot] = entry
    model.save_pretrained(folder)
    file = folder / DATASET_STATISTICS
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | {policy.robot: entry}, indent=2) + "\n")
    if not is_originals(head.config):
        save_head(head, folder)
    return head


def _reload(bundle: Bundle, head: ActionHead, folder: Path, dtype: torch.dtype, device: str) -> RobotPolicy:
    """The policy as it lies on disk; the original's own head has no weights and is taken as it is."""
    model = OpenVLA.from_pretrained(folder, dtype, device)
    return RobotPolicy(
        model=model,
        head=head if is_originals(head.config) else load_head(folder, model),
        embodiment=bundle.embodiment,
        action_statistics=bundle.action_statistics,
        proprio_statistics=bundle.proprio_statistics,
        observation=bundle.observation,
        adapted=False,
        constants=bundle.constants,
    )


def _notes(bundle: Bundle, head: ActionHead) -> list[str]:
    """What `predict_action` of the original will not do by itself for this robot."""
    notes = [f"norm_stats['{bundle.robot}'] is in SI units of the unified slots, gripper 1 open and 0 closed"]
    if not is_originals(head.config):
        notes.append(
            f"the head is {describe(head.config)} (in {HEAD_JSON}); the original's predict_action knows "
            "single steps of tokens only"
        )
    if bundle.constants:
        notes.append(f"not predicted, to be sent as constants: {', '.join(sorted(bundle.constants))}")
    if bundle.observation.center_crop < 1:
        notes.append(f"the policy sees {bundle.observation}; crop images so (center_crop) before they go in")
    return notes


def _stored_dtype(stored: Checkpoint) -> torch.dtype:
    """Number type of the largest part of a checkpoint.

    Raises:
        ValueError: it is none that is merged into, such as an 8-bit type.
    """
    sizes: dict[str, int] = {}
    for tensor in stored.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.stop - tensor.start
    most = max(sizes, key=lambda name: sizes[name])
    if most not in _STORED:
        known = ", ".join(_STORED)
        raise ValueError(f"the base stores its weights as {most}; adapters are merged into {known}")
    return _STORED[most]


def _check_room(out: Path, stored: Checkpoint, dtype: torch.dtype) -> None:
    needed = stored.total_bytes * dtype.itemsize // _stored_dtype(stored).itemsize
    place = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"the merged checkpoint takes {needed / 1e9:.3f} GB, {place} has {free / 1e9:.3f} GB free"
        )


def _refuse_source(out: Path, *sources: str | Path) -> None:
    for source in sources:
        if out.resolve() == Path(source).resolve():
            raise ValueError(f"{out} is what is being merged; write to another folder")
