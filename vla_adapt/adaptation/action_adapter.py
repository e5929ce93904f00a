"""A learned map from one robot's actions to another's: linear, with an optional MLP on top.

The linear part composes with a parallel head's output layer (see `warm_start`). The map is fitted one way; no
inverse is promised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.checkpoint import atomic_files
from vla_adapt.suggest import validate_model
from vla_adapt.types import NUM_SLOTS

ADAPTER_JSON, ADAPTER_TENSORS = "action_adapter.json", "action_adapter.safetensors"
_FORMAT = 1


class ActionAdapterConfig(BaseModel):
    """`linear`, or `mlp`: the linear map plus a two-layer MLP of `hidden` units."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["linear", "mlp"] = "linear"
    hidden: int = Field(default=64, ge=1)


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two robots: its name, the slots of its actions, and the statistics that normalize them."""

    robot: str
    mask: Bool[np.ndarray, " 32"]
    statistics: Statistics

    @staticmethod
    def of(embodiment: Embodiment, statistics: Statistics) -> Side:
        return Side(embodiment.name, ActionUnifier(embodiment).mask, statistics)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(self.statistics, self.mask)

    def to_dict(self) -> dict[str, Any]:
        slots = np.flatnonzero(self.mask).tolist()
        return {"robot": self.robot, "slots": slots, "statistics": self.statistics.to_dict()}

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> Side:
        mask = np.zeros(NUM_SLOTS, dtype=bool)
        mask[tree["slots"]] = True
        return Side(tree["robot"], mask, Statistics.from_dict(tree["statistics"]))


class ActionAdapter(nn.Module):
    """Normalized actions of `source` to normalized actions of `target`.

    Only slots that `source` has are read, only slots that `target` has are written (others are zero). A fresh
    adapter copies the slots that both have: same place in the range, not same meters.

    Args:
        source: the robot whose actions are given.
        target: the robot whose actions are wanted.
        config: linear or with an MLP.
    """

    source_mask: Tensor
    target_mask: Tensor

    def __init__(self, source: Side, target: Side, config: ActionAdapterConfig | None = None) -> None:
        super().__init__()
        self.source, self.target, self.config = source, target, config or ActionAdapterConfig()
        self.register_buffer("source_mask", torch.from_numpy(source.mask.copy()), persistent=False)
        self.register_buffer("target_mask", torch.from_numpy(target.mask.copy()), persistent=False)
        self.linear = nn.Linear(NUM_SLOTS, NUM_SLOTS)
        self.set_linear(torch.diag((self.source_mask & self.target_mask).double()), torch.zeros(NUM_SLOTS))
        self.mlp: nn.Sequential | None = None
        if self.config.kind == "mlp":
            last = nn.Linear(self.config.hidden, NUM_SLOTS)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(NUM_SLOTS, self.config.hidden), nn.GELU(), last)
        self.facts: dict[str, Any] = {}

    @torch.no_grad()
    def set_linear(self, matrix: Float[Tensor, "32 32"], offset: Float[Tensor, " 32"]) -> None:
        """Set target = matrix @ source + offset; entries of slots that a robot lacks become zero."""
        used = self.target_mask[:, None] & self.source_mask[None]
        self.linear.weight.copy_(matrix.masked_fill(~used, 0.0))
        self.linear.bias.copy_(offset.masked_fill(~self.target_mask, 0.0))

    def forward(self, values: Float[Tensor, "*n 32"]) -> Float[Tensor, "*n 32"]:
        """Normalized [-1, 1] in; normalized, not clipped, out."""
        read = values.masked_fill(~self.source_mask, 0.0)
        mapped = self.linear(read)
        if self.mlp is not None:
            mapped = mapped + self.mlp(read)
        return mapped.masked_fill(~self.target_mask, 0.0)

    @torch.no_grad()
    def map_actions(self, values: Float[np.ndarray, "*n 32"]) -> Float[np.ndarray, "*n 32"]:
        """Unified actions of the source in SI units to those of the target in SI units."""
        normalized = self.source.normalizer.normalize(np.asarray(values, np.float64))
        mapped = self(torch.from_numpy(normalized).to(self.linear.weight)).double().numpy()
        return self.target.normalizer.denormalize(mapped)

    def linear_between(
        self, source: Normalizer, target: Normalizer
    ) -> tuple[Float[np.ndarray, "32 32"], Float[np.ndarray, " 32"]]:
        """(matrix, offset) of the linear part from `source`'s normalized space to `target`'s.

        These may have other statistics than those of the fit; the affine difference is composed exactly.
        """
        fitted = self.source.normalizer, self.target.normalizer
        into, into_offset = renormalization(source, fitted[0])
        out, out_offset = renormalization(fitted[1], target)
        weight = self.linear.weight.detach().double().numpy()
        bias = self.linear.bias.detach().double().numpy()
        matrix = out[:, None] * weight * into[None]
        return matrix, np.where(self.target.mask, out * (weight @ into_offset + bias) + out_offset, 0.0)

    def save(self, folder: str | Path) -> None:
        """Write `action_adapter.json` and `action_adapter.safetensors` into an existing folder."""
        described = {
            "format": _FORMAT, "source": self.source.to_dict(), "target": self.target.to_dict(),
            "config": self.config.model_dump(), "facts": self.facts,
        }  # fmt: skip
        with atomic_files(folder) as scratch:
            (scratch / ADAPTER_JSON).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
            tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
            save_file(tensors, scratch / ADAPTER_TENSORS, metadata={"format": "pt"})

    @staticmethod
    def load(
        folder: str | Path, source: Embodiment | None = None, target: Embodiment | None = None
    ) -> ActionAdapter:
        """Read an adapter; with `source` or `target` given, check that it is of those robots.

        Raises:
            ValueError: files missing or that do not fit each other, another robot, other slots.
        """
        folder = Path(folder)
        for name in (ADAPTER_JSON, ADAPTER_TENSORS):
            if not (folder / name).is_file():
                raise ValueError(f"no {name} in {folder}; wanted a folder with a learned action adapter")
        described = json.loads((folder / ADAPTER_JSON).read_text())
        if described.get("format") != _FORMAT:
            raise ValueError(
                f"{folder / ADAPTER_JSON}: format {described.get('format')}, this vla_adapt reads {_FORMAT}"
            )
        config = validate_model(ActionAdapterConfig, described["config"], str(folder / ADAPTER_JSON))
        sides = Side.from_dict(described["source"]), Side.from_dict(described["target"])
        for side, wanted, role in ((sides[0], source, "source"), (sides[1], target, "target")):
            if wanted is not None:
                check_side(side, wanted, role, str(folder))
        adapter = ActionAdapter(*sides, config)
        state = load_file(folder / ADAPTER_TENSORS)
        if _shapes(state) != _shapes(adapter.state_dict()):
            raise ValueError(f"{folder / ADAPTER_TENSORS} does not fit {ADAPTER_JSON}; copy both files again")
        adapter.load_state_dict(state)
        adapter.facts = described["facts"]
        return adapter.eval()


def check_side(side: Side, wanted: Embodiment, role: str, where: str) -> None:
    """Raise ValueError unless `side` is of the robot `wanted`, with the slots it has today."""
    if side.robot != wanted.name:
        raise ValueError(
            f"{where}: the action adapter's {role} is '{side.robot}', wanted '{wanted.name}'; fit another"
        )
    mask = ActionUnifier(wanted).mask
    if not np.array_equal(side.mask, mask):
        got, now = np.flatnonzero(side.mask).tolist(), np.flatnonzero(mask).tolist()
        raise ValueError(
            f"{where}: the action adapter was fitted when {role} '{side.robot}' had slots {got}, its "
            f"embodiment now has {now}; fit it again"
        )


def renormalization(
    first: Normalizer, second: Normalizer
) -> tuple[Float[np.ndarray, " 32"], Float[np.ndarray, " 32"]]:
    """(scale, offset) with second = scale * first + offset where nothing is clipped; zero where masked."""
    mask = first.mask & second.mask
    scale = first.half_range / second.half_range
    offset = (first.center - second.center) / second.half_range
    return np.where(mask, scale, 0.0), np.where(mask, offset, 0.0)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
