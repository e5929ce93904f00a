"""Does a merged model answer as the adapted one did? What is asked, what is measured, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.method import activate
from vla_adapt.adaptation.robot_policy import RobotPolicy

# Largest difference of logits and hidden states, in parts of the largest magnitude, that counts as rounding.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_OTHER_PROMPTS = ("pick up the object on the left", "move to the middle of the table")


@dataclass(frozen=True)
class Answers:
    """What a policy gives: hidden states and logits of each input, and the golden action chunk."""

    tensors: list[Tensor]
    chunk: Float[np.ndarray, "H D"]


@dataclass(frozen=True)
class MergeReport:
    """What was merged and measured.

    Attributes:
        robot: whose adapter.
        modules: how many weights were changed.
        dtype: of the weights written.
        difference: largest difference of logits and hidden states between the merged and the adapted model,
            in parts of the largest magnitude.
        chunk_difference: largest difference of the golden action chunk, in half action ranges.
        effect: `difference` between the bare base and the adapted model: what the adapter does.
        tolerance: what was allowed.
        notes: what the original stack will not know of this robot.
    """

    robot: str
    modules: int
    dtype: torch.dtype
    difference: float
    chunk_difference: float
    effect: float
    tolerance: float
    notes: tuple[str, ...]

    def check(self, golden: Golden) -> None:
        """Raise ValueError when the merged model does not answer as the adapted one."""
        kind = str(self.dtype).removeprefix("torch.")
        measured = (
            f"'{self.robot}': the merged model differs by {self.difference:.3g} of the largest output "
            f"(allowed {self.tolerance:.3g} in {kind}), its golden action chunk by "
            f"{self.chunk_difference:.3g} of the half range"
        )
        advice = "nothing was written; merge in a wider type (--dtype float32) or serve the adapter unmerged"
        same_chunk = self.chunk_difference <= max(self.tolerance, golden.tolerance)
        if not (self.difference <= self.tolerance and same_chunk):
            raise ValueError(f"{measured}; {advice}")
        if self.effect and self.difference > self.effect / 2:
            raise ValueError(
                f"{measured}, while the adapter itself changes outputs by only {self.effect:.3g}: "
                f"rounding to {kind} swallows it; {advice}"
            )


def answers(policy: RobotPolicy, golden: Golden) -> Answers:
    """What a policy gives for the golden observation, and its hidden states and logits for two more."""
    tensors = hidden_and_logits(policy, golden, adapted=policy.adapted)
    return Answers(tensors, policy.act(golden.observation(policy.camera)))


def hidden_and_logits(policy: RobotPolicy, golden: Golden, adapted: bool) -> list[Tensor]:
    """Hidden states [1, L, D] and logits [1, L, V] for the golden observation, its mirror image and noise.

    Of several cameras the first alone is looked at here; the golden action chunk comes from all of them.
    """
    noise = np.random.default_rng(0).integers(0, 256, golden.image.shape, dtype=np.uint8)
    images = (golden.image, np.ascontiguousarray(golden.image[:, ::-1]), noise)
    activate(policy.model, policy.robot if adapted else None)
    tensors = []
    for image, prompt in zip(images, (golden.prompt, *_OTHER_PROMPTS), strict=True):
        observation = replace(golden, image=image, prompt=prompt).observation(policy.camera)
        batch = policy.batch(observation).to(policy.model.device)
        with torch.inference_mode():
            seen = policy.model(
                batch.input_ids, batch.attention_mask, batch.pixel_values[:, :6], output_hidden_states=True
            )
        tensors += [seen.hidden_states[-1].float().cpu(), seen.logits.float().cpu()]
    return tensors


def difference(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference in parts of the largest magnitude wanted; NaN anywhere is infinity."""
    worst = 0.0
    for first, second in zip(got, wanted, strict=True):
        part = float((first - second).abs().max() / second.abs().max())
        worst = max(worst, part if np.isfinite(part) else float("inf"))
    return worst


def golden_of(bundle: Bundle) -> Golden:
    """The bundle's golden pair. Raises ValueError when it has none."""
    if bundle.golden is None:
        raise ValueError(
            f"bundle of '{bundle.robot}' has no golden pair; it was not finished: train it again"
        )
    return bundle.golden
