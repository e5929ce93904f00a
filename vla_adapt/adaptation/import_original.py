"""An adapter that the original OpenVLA's `finetune.py` saved, as a bundle of ours that is ready for serving.

The original adapts "all-linear": beside what we adapt also the patch convolutions and `lm_head`, and what
never runs, each tower's last block and SigLIP's attention pooling. What never runs is dropped, the rest is
taken over exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from PIL import Image, UnidentifiedImageError

from vla_adapt.actions.normalize import Statistics
from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.bundle_manifest import MANIFEST
from vla_adapt.adaptation.card import NOT_MEASURED, CardFacts, model_card
from vla_adapt.adaptation.environment_facts import this_start
from vla_adapt.adaptation.factors import Factor, read_factors, write_factors
from vla_adapt.adaptation.folder import claim_folder, told_disk_errors
from vla_adapt.adaptation.licenses import base_license, base_on_hub
from vla_adapt.adaptation.original_head import ORIGINAL_HEAD, describe, is_originals, stored_head
from vla_adapt.adaptation.original_names import factors_to_ours
from vla_adapt.adaptation.original_statistics import (
    DATASET_STATISTICS,
    adopt_statistics,
    read_dataset_statistics,
)
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.adaptation.saved_adapter import check_complete, idle_modules, read_saved_adapter
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.heads import make_head
from vla_adapt.policy.norm_stats import dataset_stats
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.suggest import did_you_mean

_GOLDEN_SIDE = 256
_GOLDEN_TOLERANCE = (
    2 * 2 / 255
)  # two of the tokens' bins, as other hardware may round into the neighboring one
DEFAULT_PROMPT = "pick up the object"


@dataclass(frozen=True)
class ImportReport:
    """What was taken over and what was not.

    Attributes:
        robot: name of the bundle.
        modules: of ours that bear an adapter.
        dropped: modules of the original that never run, whose adapters were left out.
        unnorm_key: whose statistics were taken.
        notes: what a person should know.
    """

    robot: str
    modules: int
    dropped: tuple[str, ...]
    unnorm_key: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImportChoices:
    """What the saved adapter does not say.

    Attributes:
        statistics: file with the statistics; None looks for `dataset_statistics.json` beside the adapter.
        unnorm_key: dataset in it; may be left out when there is one only.
        camera: whose images the policy sees; None takes `primary`, or the only one.
        center_crop: area of the middle it sees, 0.9 after training with OpenVLA's random crops, 1 otherwise.
        image: of the golden pair, uint8 [h, w, 3]; None takes a made-up one.
        prompt: of the golden pair.
    """

    statistics: Path | None = None
    unnorm_key: str | None = None
    camera: str | None = None
    center_crop: float = 1.0
    image: np.ndarray | None = None
    prompt: str = DEFAULT_PROMPT


def import_adapter(
    folder: str | Path,
    base_dir: str | Path,
    embodiment: Embodiment,
    out: str | Path,
    choices: ImportChoices = ImportChoices(),
    overwrite: bool = False,
) -> ImportReport:
    """Read an adapter of the original and write a bundle with the token head (one step, no state).

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        base_dir: checkpoint folder the adapter was trained on.
        embodiment: the robot; its action must list the dataset's numbers in order.
        out: bundle folder to write; it appears whole or not at all.
        choices: what the folder does not say.
        overwrite: replace an earlier bundle at `out`.

    Raises:
        ValueError: files missing or broken, tensors missing or of another base, statistics that are not named
            or do not fit the robot, an existing `out`.
    """
    claim_folder(out, MANIFEST, overwrite)
    saved = read_saved_adapter(folder)
    _refuse_other_head(Path(folder))
    key, entry = _entry(Path(folder), choices)
    statistics, embodiment, notes = adopt_statistics(entry, embodiment)
    original = read_factors(saved.config, saved.tensors)
    base = OpenVLA.from_pretrained(base_dir)
    check_complete(saved, original, Checkpoint(base_dir))
    factors, dropped = factors_to_ours(original, idle_modules(base))
    if "image_aug" in str(Path(folder).resolve()) and choices.center_crop == 1:
        notes.append("the folder's name says image_aug: such policies are served with --center-crop 0.9")
    bundle = _bundle(base, saved.config, factors, embodiment, statistics, choices)
    bundle.facts = _facts(saved.config, key, len(factors), dropped, notes)
    bundle.card = _card(bundle, saved.config, key, Path(base_dir))
    bundle = bundle.with_golden(_golden(bundle, base, choices))
    with told_disk_errors(out):
        bundle.save(out)
    return ImportReport(bundle.robot, len(factors), tuple(dropped), key, tuple(notes))


def _refuse_other_head(folder: Path) -> None:
    head = stored_head(folder)
    if head is not None and not is_originals(head):
        raise ValueError(
            f"the adapter in {folder} was trained with a head of vla_adapt ({describe(head)}), an import "
            "makes the original's token head; serve the bundle it was exported from"
        )


def _entry(folder: Path, choices: ImportChoices) -> tuple[str, Mapping[str, Any]]:
    file = choices.statistics or folder / DATASET_STATISTICS
    entries = read_dataset_statistics(file)
    try:
        dataset_stats(entries, choices.unnorm_key)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    key = choices.unnorm_key or next(iter(entries))
    return key, entries[key]


def _bundle(
    base: OpenVLA,
    config: LoraConfig,
    factors: Mapping[str, Factor],
    embodiment: Embodiment,
    statistics: Statistics,
    choices: ImportChoices,
) -> Bundle:
    own_config, tensors = write_factors(factors, config.use_rslora)
    return Bundle(
        embodiment=embodiment,
        action_statistics=statistics,
        proprio_statistics=None,
        observation=ObservationConfig(
            camera=_camera(embodiment, choices.camera), center_crop=choices.center_crop
        ),
        base_fingerprint=base.fingerprint,
        head=make_head(ORIGINAL_HEAD, base),
        adapter_config=own_config,
        adapter=tensors,
    )


def _camera(embodiment: Embodiment, chosen: str | None) -> str:
    cameras = list(embodiment.cameras)
    if chosen is None and len(cameras) > 1 and "primary" not in cameras:
        raise ValueError(
            f"{embodiment.name} has cameras {', '.join(cameras)}; name the one the policy sees (--camera)"
        )
    chosen = chosen or ("primary" if "primary" in cameras else cameras[0])
    if chosen not in cameras:
        raise ValueError(f"{embodiment.name} has no camera {chosen!r}; {did_you_mean(chosen, cameras)}")
    return chosen


def _golden(bundle: Bundle, base: OpenVLA, choices: ImportChoices) -> Golden:
    image = golden_image() if choices.image is None else choices.image
    return Golden.record(bundle.attach(base), image, None, choices.prompt, _GOLDEN_TOLERANCE)


def golden_image() -> np.ndarray:
    """A made-up picture, uint8 [256, 256, 3]: color ramps and a checkerboard, the same everywhere."""
    down, right = np.mgrid[:_GOLDEN_SIDE, :_GOLDEN_SIDE]
    board = 255 * ((down // 32 + right // 32) % 2)
    return np.stack([down, right, board], axis=2).astype(np.uint8)


def read_image(file: str | Path) -> np.ndarray:
    """A picture file as uint8 RGB [h, w, 3]. Raises ValueError when it is none."""
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error})") from None


def _facts(
    config: LoraConfig, key: str, modules: int, dropped: list[str], notes: list[str]
) -> dict[str, Any]:
    return {
        "recipe_name": "imported from OpenVLA's finetune.py",
        "data": f"{key} (as the original's statistics name it)",
        "imported": {
            "base_named": config.base_model_name_or_path,
            "unnorm_key": key,
            "modules": modules,
            "dropped_modules": dropped,
            "notes": notes,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": [this_start()],
    }


def _card(bundle: Bundle, config: LoraConfig, key: str, base: Path) -> str:
    return model_card(bundle.embodiment, CardFacts(
        recipe="imported from the original finetune.py",
        base=bundle.base_fingerprint[:12],
        adaptation=f"LoRA r={config.r}, alpha={config.lora_alpha}",
        head="tokens, horizon 1",
        image=str(bundle.observation),
        state="not read",
        constants="none",
        data=f"{key} (as the original's statistics name it)",
        steps="not recorded",
        held_out=NOT_MEASURED,
        statistics=bundle.action_statistics,
        base_model=base_on_hub(base),
        base_license=base_license(base),
    ))  # fmt: skip
