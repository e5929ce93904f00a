"""Resume points: what trains, optimizer, schedule and step, in one file that is always whole.

The order of samples needs no state: it is a pure function of the seed and the step (`episodes.mixture`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

FILE = "resume.pt"


def save_resume_point(
    folder: Path,
    step: int,
    recipe_text: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
) -> None:
    """Write the state after `step` steps; an older point stays until the new one is on disk."""
    trained = {name: p.detach().cpu() for name, p in module.named_parameters() if p.requires_grad}
    state = {
        "step": step,
        "recipe": recipe_text,
        "trained": trained,
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
) -> int:
    """Restore the point, if there is one of this very recipe, and return the number of steps already done."""
    file = folder / FILE
    if not file.is_file():
        return 0
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe_text:
        return 0
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != state["trained"].keys():
        raise ValueError(f"{file} holds other parameters than this recipe trains; delete it to start anew")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None] * len(schedule.lr_lambdas)})
    return int(state["step"])


def drop_resume_point(folder: Path) -> None:
    """Remove the point of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
