"""One robot's policy: native observation in, native action chunk out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.constants import Constants, check_constants, put_constants
from vla_adapt.adaptation.method import activate
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.policy.heads import ActionHead, HeadOutput
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.randomization.visual import CenterCrop, CenterCropArea


class ObservationConfig(BaseModel):
    """What the policy looks at.

    Attributes:
        camera: whose images.
        more_cameras: further cameras, seen where an observation has them.
        blind: zero all pixels (the control policy).
        center_crop: area of the middle of the image that is stretched to full size, 1: the whole image;
            `true` is OpenVLA's 0.9, for policies trained with random crops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    camera: str = "primary"
    more_cameras: tuple[str, ...] = ()
    blind: bool = False
    center_crop: CenterCropArea = 1.0

    def __str__(self) -> str:
        part = f", middle {self.center_crop:g} of its area" if self.center_crop < 1 else ""
        cameras = ", ".join(f"`{name}`" for name in (self.camera, *self.more_cameras))
        return f"{cameras}{part}{', zeroed (blind)' if self.blind else ''}"

    @property
    def view(self) -> CenterCrop | None:
        """The crop, where there is one."""
        return CenterCrop(self.center_crop) if self.center_crop < 1 else None


@dataclass
class RobotPolicy:
    """A robot on a resident model: its adapter (by name), head, statistics and conventions.

    Attributes:
        action_statistics: over the slots it was trained on; others are neither predicted nor sent.
        proprio_statistics: the same of the state; None: trained without any.
        constants: native numbers sent for action components that it was not trained on.

    Raises:
        ValueError: a component that is neither trained nor constant, see `check_constants`.
    """

    model: OpenVLA
    head: ActionHead
    embodiment: Embodiment
    action_statistics: Statistics
    proprio_statistics: Statistics | None
    observation: ObservationConfig
    adapted: bool
    constants: Constants = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_constants(self.embodiment, self.action_statistics.mask, self.constants)
        self.model.eval()  # a model fresh from training still drops out
        self.head.to(self.model.device).eval()
        self._actions = ActionUnifier(self.embodiment)
        self._proprio = ActionUnifier(self.embodiment, kind="proprio")
        self._normalizers = normalizers(self.embodiment, self.action_statistics, self.proprio_statistics)
        self._builder = BatchBuilder.from_pretrained(
            self.model.source,
            {self.robot: self._normalizers},
            blind=self.observation.blind,
            image_key=self.camera,
            view=self.observation.view,
            more_cameras=self.observation.more_cameras,
        )

    @property
    def robot(self) -> str:
        return self.embodiment.name

    @property
    def camera(self) -> str:
        return self.observation.camera

    @property
    def unifiers(self) -> tuple[ActionUnifier, ActionUnifier]:
        """Of the action and of the proprio."""
        return self._actions, self._proprio

    @property
    def horizon(self) -> int:
        return self.head.horizon

    @property
    def reads_state(self) -> bool:
        """Whether an observation must hold the robot's state."""
        return self.proprio_statistics is not None and self.head.config.proprio

    def act(self, observation: Mapping[str, Any]) -> Float[np.ndarray, "H D"]:
        """Action chunk in the robot's own units.

        Args:
            observation: `images` {camera: uint8 [h, w, 3]}, `state` [P] native proprio, `prompt`. A state
                is ignored unless the policy `reads_state`.

        Raises:
            ValueError: a missing camera or key, a state of the wrong width or with NaN.
        """
        actions = self._actions.to_robot(self._predict(self.batch(observation))[0]).astype(np.float32)
        return put_constants(self.embodiment, actions, self.constants)

    def batch(self, observation: Mapping[str, Any]) -> PolicyBatch:
        """One observation as the model sees it; see `act`."""
        if not self.reads_state:
            return self._builder.observation(observation, self.robot)
        if observation.get("state") is None:
            wanted = self.embodiment.proprio_dim
            raise ValueError(f"observation of '{self.robot}' has no 'state'; wanted {wanted} numbers")
        state, mask = self._proprio.to_unified(self.embodiment.check_proprio(observation["state"]))
        return self._builder.observation(observation, self.robot, state, mask)

    def predict_windows(self, windows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "B H 32"]:
        """Predicted unified chunks in SI units for windows of recorded episodes."""
        return self._predict(self._builder.windows(windows))

    def answer_windows(self, windows: Sequence[Mapping[str, Any]]) -> HeadOutput:
        """What the head makes of windows of recorded episodes, without gradients: loss, chunks, features."""
        activate(self.model, self.robot if self.adapted else None)
        with torch.no_grad():
            return self.head(self.model, self._builder.windows(windows).to(self.model.device))

    def _predict(self, batch: PolicyBatch) -> Float[np.ndarray, "B H 32"]:
        activate(self.model, self.robot if self.adapted else None)
        with torch.inference_mode():
            normalized = self.head.predict(self.model, batch.to(self.model.device))
        return self._normalizers[0].denormalize(normalized.float().cpu().numpy().astype(np.float64))

    def normalize(self, values: Float[np.ndarray, "*n 32"]) -> Float[np.ndarray, "*n 32"]:
        """Unified SI actions in half action ranges, clipped to [-1, 1]."""
        return self._normalizers[0].normalize(values)

    def difference(self, first: Float[np.ndarray, "H D"], second: Float[np.ndarray, "K E"]) -> float:
        """Largest difference of two native chunks, in half action ranges, also far out of these ranges.

        NaN or another shape: infinity.
        """
        if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
            return float("inf")
        one, other = (self._actions.to_unified(chunk.astype(np.float64))[0] for chunk in (first, second))
        normalizer = self._normalizers[0]
        return float((np.abs(one - other) / normalizer.half_range)[..., normalizer.mask].max())


def normalizers(
    embodiment: Embodiment, action: Statistics, proprio: Statistics | None
) -> tuple[Normalizer, Normalizer | None]:
    """Of a robot's action and proprio, over the slots that it has and that were measured."""
    masks = ActionUnifier(embodiment).mask, ActionUnifier(embodiment, kind="proprio").mask
    of_proprio = None if proprio is None else Normalizer(proprio, masks[1] & proprio.mask)
    return Normalizer(action, masks[0] & action.mask), of_proprio
