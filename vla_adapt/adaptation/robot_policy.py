"""One robot's policy: native observation in, native action chunk out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.method import activate
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.policy.heads import ActionHead
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.randomization.visual import CenterCrop, CenterCropArea


class ObservationConfig(BaseModel):
    """What the policy looks at.

    Attributes:
        camera: whose images.
        blind: zero all pixels (the control policy).
        center_crop: area of the middle of the image that is stretched to full size, 1: the whole image;
            `true` is OpenVLA's 0.9, for policies trained with random crops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    camera: str = "primary"
    blind: bool = False
    center_crop: CenterCropArea = 1.0

    def __str__(self) -> str:
        part = f", middle {self.center_crop:g} of its area" if self.center_crop < 1 else ""
        return f"`{self.camera}`{part}{', zeroed (blind)' if self.blind else ''}"

    @property
    def view(self) -> CenterCrop | None:
        """The crop, where there is one."""
        return CenterCrop(self.center_crop) if self.center_crop < 1 else None


@dataclass
class RobotPolicy:
    """A robot on a resident model: its adapter (by name), head, statistics and conventions."""

    model: OpenVLA
    head: ActionHead
    embodiment: Embodiment
    action_statistics: Statistics
    proprio_statistics: Statistics
    observation: ObservationConfig
    adapted: bool

    def __post_init__(self) -> None:
        self.model.eval()  # a model fresh from training still drops out
        self.head.to(self.model.device).eval()
        self._actions = ActionUnifier(self.embodiment)
        self._proprio = ActionUnifier(self.embodiment, kind="proprio")
        self._normalizers = (
            Normalizer(self.action_statistics, self._actions.mask),
            Normalizer(self.proprio_statistics, self._proprio.mask) if self.reads_state else None,
        )
        self._builder = BatchBuilder.from_pretrained(
            self.model.source,
            {self.robot: self._normalizers},
            blind=self.observation.blind,
            image_key=self.camera,
            view=self.observation.view,
        )

    @property
    def robot(self) -> str:
        return self.embodiment.name

    @property
    def camera(self) -> str:
        return self.observation.camera

    @property
    def reads_state(self) -> bool:
        """Whether the head looks at the robot's state; otherwise observations need none."""
        return self.head.config.proprio

    @property
    def unifiers(self) -> tuple[ActionUnifier, ActionUnifier]:
        """Of the action and of the proprio."""
        return self._actions, self._proprio

    @property
    def horizon(self) -> int:
        return self.head.horizon

    def act(self, observation: Mapping[str, Any]) -> Float[np.ndarray, "H D"]:
        """Action chunk in the robot's own units.

        Args:
            observation: `images` {camera: uint8 [h, w, 3]}, `prompt`, and `state` [P] native proprio if
                `reads_state`.

        Raises:
            ValueError: a missing camera or key, a state of the wrong width or with NaN.
        """
        return self._actions.to_robot(self._predict(self.batch(observation))[0]).astype(np.float32)

    def batch(self, observation: Mapping[str, Any]) -> PolicyBatch:
        """One observation as the model sees it; see `act`."""
        if not self.reads_state:
            return self._builder.observation(observation, self.robot)
        if "state" not in observation or observation["state"] is None:
            raise ValueError(
                f"observation of '{self.robot}' has no 'state'; wanted {self.embodiment.proprio_dim} numbers"
            )
        state, mask = self._proprio.to_unified(self.embodiment.check_proprio(observation["state"]))
        return self._builder.observation(observation, self.robot, state, mask)

    def predict_windows(self, windows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "B H 32"]:
        """Predicted unified chunks in SI units for windows of recorded episodes."""
        return self._predict(self._builder.windows(windows))

    def _predict(self, batch: PolicyBatch) -> Float[np.ndarray, "B H 32"]:
        activate(self.model, self.robot if self.adapted else None)
        with torch.inference_mode():
            normalized = self.head.predict(self.model, batch.to(self.model.device))
        return self._normalizers[0].denormalize(normalized.float().cpu().numpy().astype(np.float64))

    def normalize(self, values: Float[np.ndarray, "*n 32"]) -> Float[np.ndarray, "*n 32"]:
        """Unified SI actions in half action ranges, clipped to [-1, 1]."""
        return self._normalizers[0].normalize(values)

    def difference(self, first: Float[np.ndarray, "H D"], second: Float[np.ndarray, "H D"]) -> float:
        """Largest difference of two native chunks, in half action ranges. NaN or another shape: infinity."""
        if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
            return float("inf")
        unified = [self._actions.to_unified(chunk.astype(np.float64))[0] for chunk in (first, second)]
        return float(np.abs(self.normalize(unified[0]) - self.normalize(unified[1])).max())
