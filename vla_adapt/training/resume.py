"""Resume points: what trains, optimizer, schedule, step and running sums, in one file that is always whole.

Of the order of samples it holds the number of the next one (`episodes.loader`): the rest is a pure function.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

FILE = "resume.pt"


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        step: steps already done.
        order: state of the loader, or None at the start.
        sums: of the metrics since the last logged step, over all processes, or None.
        differs: keys in which the recipe of a point that was found differs; it was not used then.
    """

    step: int = 0
    order: dict[str, Any] | None = None
    sums: torch.Tensor | None = None
    differs: list[str] = field(default_factory=list)


def save_resume_point(
    folder: Path,
    step: int,
    recipe_text: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    order: dict[str, Any],
    sums: torch.Tensor,
) -> None:
    """Write the state after `step` steps; an older point stays until the new one is on disk.

    `recipe_text` is the part of the recipe that must be equal to go on from here.
    """
    trained = {name: p.detach().cpu() for name, p in module.named_parameters() if p.requires_grad}
    state = {
        "step": step,
        "recipe": recipe_text,
        "trained": trained,
        "order": order,
        "sums": sums.cpu(),
        "optimizer": optimizer.state_dict(),
        "schedule": {key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"},
    }
    aside = folder / f".{FILE}.writing"
    with aside.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, folder / FILE)


def load_resume_point(
    folder: Path, recipe_text: str, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR
) -> Resumed:
    """Restore the point, if there is one of this very recipe, and say where the run goes on.

    Raises:
        ValueError: it holds other parameters than these.
    """
    file = folder / FILE
    if not file.is_file():
        return Resumed()
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe_text:
        return Resumed(differs=_differences(state["recipe"], recipe_text))
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != state["trained"].keys():
        raise ValueError(f"{file} holds other parameters than this recipe trains; delete it to start anew")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None] * len(schedule.lr_lambdas)})
    return Resumed(int(state["step"]), state["order"], state["sums"])


def drop_resume_point(folder: Path) -> None:
    """Remove the point of a finished run."""
    (folder / FILE).unlink(missing_ok=True)


def _differences(one: str, two: str) -> list[str]:
    """Dotted keys in which two recipes differ."""
    left, right = _flat(yaml.safe_load(one)), _flat(yaml.safe_load(two))
    absent = object()
    return [key for key in {**left, **right} if left.get(key, absent) != right.get(key, absent)]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted key."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, part in items for key, leaf in _flat(part, f"{prefix}.{name}").items()}
    return {prefix.removeprefix("."): tree}
