"""Where in the policy features are looked at, by the invariance loss and by the probe alike."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

TapName = Literal["patches", "hidden"]


def tapped(
    tap: TapName, patches: Float[Tensor, "B P D"], action_hidden: Float[Tensor, "B K D"]
) -> Float[Tensor, "B D"]:
    """One feature vector per row.

    Args:
        tap: "patches" is the mean of the projected image patches, "hidden" the mean of the last hidden states
            at the action positions.
        patches: projected patches, as in `HeadOutput.patches`.
        action_hidden: as in `HeadOutput.action_hidden`.
    """
    return (patches if tap == "patches" else action_hidden).mean(dim=1)
