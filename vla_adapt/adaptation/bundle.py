"""A bundle: what training leaves per robot and serving loads, one folder, written atomically.

adapter_config.json, adapter_model.safetensors   plain PEFT (absent when nothing of the base was adapted)
head.json, head.safetensors                      the robot's action head
statistics.json                                  action and proprio statistics, unified slots, SI units;
                                                 proprio is null when it was trained without any state
embodiment.yaml                                  the robot as data
golden.npz                                       one observation and the action chunk it must give
action_adapter.json, action_adapter.safetensors  the map from another robot's actions (optional)
bundle.json                                      format, base fingerprint, recipe, checksums, metrics
README.md                                        model card
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_adapt.actions.normalize import Statistics
from vla_adapt.adaptation.action_adapter import ADAPTER_JSON, ActionAdapter, check_side
from vla_adapt.adaptation.attach import attach_adapter
from vla_adapt.adaptation.bundle_manifest import FORMAT, MANIFEST, check_files, read_manifest, sha256
from vla_adapt.adaptation.constants import Constants
from vla_adapt.adaptation.folder import atomic_folder, claim_folder
from vla_adapt.adaptation.lora_config import ADAPTER_WEIGHTS, read_lora_config
from vla_adapt.adaptation.robot_policy import ObservationConfig, RobotPolicy
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.heads import ActionHead, load_head, save_head
from vla_adapt.policy.openvla import OpenVLA

_IMAGE_OF = "image/"  # in golden.npz, before the name of a further camera


@dataclass(frozen=True)
class Golden:
    """One observation and the action chunk [H, D] (robot units) the bundle gave for it when it was saved.

    `image` is of the policy's first camera, `more_images` {camera: image} of others. `state` is None where
    none was recorded.
    """

    image: np.ndarray
    state: np.ndarray | None
    prompt: str
    actions: np.ndarray
    tolerance: float = 1e-3
    more_images: dict[str, np.ndarray] = field(default_factory=dict)

    def observation(self, camera: str) -> dict[str, Any]:
        state = {} if self.state is None else {"state": self.state}
        return {"images": {camera: self.image, **self.more_images}, **state, "prompt": self.prompt}

    def save(self, file: Path) -> None:
        state = {} if self.state is None else {"state": self.state}
        more = {f"{_IMAGE_OF}{camera}": image for camera, image in self.more_images.items()}
        np.savez_compressed(
            file, image=self.image, **more, **state, prompt=np.str_(self.prompt), actions=self.actions,
            tolerance=np.float64(self.tolerance),
        )  # fmt: skip

    @staticmethod
    def record(
        policy: RobotPolicy,
        image: np.ndarray,
        state: np.ndarray | None,
        prompt: str,
        tolerance: float,
        more_images: dict[str, np.ndarray] | None = None,
    ) -> Golden:
        """What `policy` answers to an observation."""
        asked = Golden(image, state, prompt, np.zeros(0), tolerance, more_images or {})
        with _whole_float32():
            return replace(asked, actions=policy.act(asked.observation(policy.camera)))

    @staticmethod
    def load(file: Path) -> Golden:
        with np.load(file, allow_pickle=False) as stored:
            return Golden(
                stored["image"],
                stored.get("state"),
                str(stored["prompt"]),
                stored["actions"],
                float(stored["tolerance"]),
                {name.removeprefix(_IMAGE_OF): stored[name] for name in stored if name.startswith(_IMAGE_OF)},
            )


@dataclass(frozen=True)
class Verification:
    """What `Bundle.verify` measured, on a base of which number type.

    Attributes:
        robot: whose bundle.
        max_difference: largest difference from the golden chunk, in half action ranges.
        tolerance: what was allowed.
        dtype: of the base's weights.
    """

    robot: str
    max_difference: float
    tolerance: float
    dtype: torch.dtype


@dataclass
class Bundle:
    """Everything one robot needs on top of its base. A loaded bundle reads its head when it is attached.

    `rate_hz` is that of the data it was trained on; None: not known, or the data is of several rates.
    """

    embodiment: Embodiment
    action_statistics: Statistics
    proprio_statistics: Statistics | None
    observation: ObservationConfig
    base_fingerprint: str
    head: ActionHead | None = None
    adapter_config: LoraConfig | None = None
    adapter: dict[str, Tensor] = field(default_factory=dict)
    golden: Golden | None = None
    action_adapter: ActionAdapter | None = None
    constants: Constants = field(default_factory=dict)
    rate_hz: float | None = None
    card: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def robot(self) -> str:
        return self.embodiment.name

    def save(self, folder: str | Path) -> None:
        """Write the bundle; a bundle at `folder` is replaced whole or left as it was.

        Raises:
            ValueError: `folder` holds something else than a bundle.
        """
        claim_folder(folder, MANIFEST, overwrite=True)
        with atomic_folder(folder) as aside:
            if self.adapter_config is not None:
                _portable(self.adapter_config).save_pretrained(str(aside))
                save_file(self.adapter, aside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            assert self.head is not None, "a bundle is saved with the head it was trained with"
            save_head(self.head, aside)
            proprio = self.proprio_statistics
            _dump(aside / "statistics.json", {
                "action": self.action_statistics.to_dict(),
                "proprio": None if proprio is None else proprio.to_dict(),
            })  # fmt: skip
            (aside / "embodiment.yaml").write_text(self.embodiment.to_text())
            if self.golden is not None:
                self.golden.save(aside / "golden.npz")
            if self.action_adapter is not None:
                check_side(self.action_adapter.target, self.embodiment, "target", str(folder))
                self.action_adapter.save(aside)
            (aside / "README.md").write_text(self.card)
            _dump(aside / MANIFEST, self._manifest(aside))

    def _manifest(self, folder: Path) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "robot": self.robot,
            "base_fingerprint": self.base_fingerprint,
            "adapter": sorted(self.adapter),
            "observation": self.observation.model_dump(),
            "constants": {name: list(numbers) for name, numbers in self.constants.items()},
            "rate_hz": self.rate_hz,
            "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
            "facts": self.facts,
        }

    @staticmethod
    def load(folder: str | Path) -> Bundle:
        """Read a bundle and check it against its own manifest.

        Raises:
            ValueError: not a bundle, a newer format, a file missing or altered, adapter tensors missing.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        statistics = json.loads((folder / "statistics.json").read_text())
        adapted, proprio = bool(manifest["adapter"]), statistics["proprio"]
        embodiment = Embodiment.from_text((folder / "embodiment.yaml").read_text())
        mapped = ADAPTER_JSON in manifest["files"]
        return Bundle(
            embodiment=embodiment,
            action_statistics=Statistics.from_dict(statistics["action"]),
            proprio_statistics=None if proprio is None else Statistics.from_dict(proprio),
            observation=ObservationConfig(**manifest["observation"]),
            base_fingerprint=manifest["base_fingerprint"],
            adapter_config=read_lora_config(folder) if adapted else None,
            adapter=load_file(folder / ADAPTER_WEIGHTS) if adapted else {},
            golden=Golden.load(folder / "golden.npz") if "golden.npz" in manifest["files"] else None,
            action_adapter=ActionAdapter.load(folder, target=embodiment) if mapped else None,
            constants={name: tuple(numbers) for name, numbers in manifest.get("constants", {}).items()},
            rate_hz=manifest.get("rate_hz"),
            card=(folder / "README.md").read_text(),
            facts=manifest["facts"],
            folder=folder,
        )

    def attach(self, base: OpenVLA) -> RobotPolicy:
        """Put this robot onto a resident base and return its policy.

        Raises:
            ValueError: `base` is not the one the bundle was trained on, or tensors do not fit.
        """
        self._check_base(base)
        head = self.head
        if head is None:
            assert self.folder is not None
            head = load_head(self.folder, base)
        if self.adapter_config is not None:
            attach_adapter(base, self.robot, self.adapter_config, self.adapter)
        return RobotPolicy(
            model=base, head=head, embodiment=self.embodiment, action_statistics=self.action_statistics,
            proprio_statistics=self.proprio_statistics, observation=self.observation,
            adapted=self.adapter_config is not None, constants=self.constants,
        )  # fmt: skip

    def verify(self, base: OpenVLA) -> Verification:
        """Attach to `base` and replay the golden pair.

        On a base that is not float32 rounding counts as no difference, see `golden_tolerance`.

        Raises:
            ValueError: wrong base, no golden pair, or actions that differ by more than the tolerance.
        """
        return self.verify_policy(self.attach(base))

    def verify_policy(self, policy: RobotPolicy) -> Verification:
        """Replay the golden pair through an attached policy; see `verify`."""
        if self.golden is None:
            raise ValueError(
                f"bundle of '{self.robot}' has no golden pair; it was not finished: train it again"
            )
        with _whole_float32():
            got = policy.act(self.golden.observation(self.observation.camera))
        difference = policy.difference(got, self.golden.actions)
        dtype, allowed = policy.model.dtype, self.golden.tolerance
        if dtype != torch.float32:
            allowed = max(allowed, golden_tolerance(policy.head, rounded=True))
        if not difference <= allowed:
            on = advice = ""
            if dtype != torch.float32:
                on = f" on a base in {str(dtype).removeprefix('torch.')}"
                advice = "; verify it in float32, where rounding plays no part"
            raise ValueError(
                f"bundle of '{self.robot}': the golden observation gives actions that differ by "
                f"{difference:.3g} of the action range (allowed{on} {allowed:.3g}); weights or "
                f"software changed since it was saved{advice}"
            )
        return Verification(self.robot, difference, allowed, dtype)

    def with_golden(self, golden: Golden) -> Bundle:
        return replace(self, golden=golden)

    def _check_base(self, base: OpenVLA) -> None:
        if base.fingerprint != self.base_fingerprint:
            raise ValueError(
                f"bundle of '{self.robot}' belongs to base {self.base_fingerprint[:12]}, this base is "
                f"{str(base.fingerprint)[:12]}: serve it on its own base, or train it on this one"
            )


def golden_tolerance(head: ActionHead, rounded: bool) -> float:
    """How far from the golden chunk actions may be, in half action ranges.

    1e-3; 0.1 where one side computes in bfloat16 and the other does not (`rounded`): that moved the actions
    of trained policies by up to 0.034. Token heads may fall into a neighboring bin: at least two of 256 bins.
    Where two tokens are nearly as likely they may also jump further, which is not told from a damage.
    """
    rounding = 0.1 if rounded else 1e-3
    return max(rounding, 2 * 2 / 255) if head.config.kind == "tokens" else rounding


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Convolutions on a GPU in float32 proper, not in TF32 as is PyTorch's default.

    TF32 alone (emulated) moves golden actions by up to 0.7 of their tolerance.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _portable(config: LoraConfig) -> LoraConfig:
    """As PEFT itself saves it: for inference, and without the path of the base on this machine."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    config.base_model_name_or_path = None
    return config


def _dump(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
