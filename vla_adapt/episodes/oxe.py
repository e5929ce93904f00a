"""Known public datasets: Open X-Embodiment name -> how it maps onto an embodiment."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vla_adapt.episodes.entry import DatasetEntry

_BRIDGE = DatasetEntry(
    embodiment="widowx",
    cameras={"primary": "observation/image_0"},
    action=("action",),
    state=("observation/state",),
    instruction="language_instruction",
)

# `bridge_dataset` is Bridge as recorded. `bridge_orig` is OpenVLA's name for the same files as it trains on
# them: first step dropped, gripper binarized, deltas relabeled with what the robot then did.
CATALOGUE: Mapping[str, DatasetEntry] = MappingProxyType(
    {
        "bridge_dataset": _BRIDGE,
        "bridge_orig": _BRIDGE.model_copy(
            update={"transforms": ("drop_first_step", "binarize_gripper", "relabel_from_next_state")}
        ),
    }
)
