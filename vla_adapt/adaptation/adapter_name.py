"""Names of adapters: one per robot and `shared`, and which of them a parameter belongs to."""

from __future__ import annotations

import re

from torch import nn

SHARED = "shared"
PREFIX = "base_model.model."  # of every name in the file of a plain PEFT adapter
_PARAMETER = re.compile(r"\.lora_[AB]\.([^.]+)\.(weight|bias)$")


def adapter_of(parameter_name: str) -> str | None:
    """The adapter that a parameter belongs to, by its name in the model; None: to no adapter.

    The adapter that all robots train together is `SHARED`.
    """
    found = _PARAMETER.search(parameter_name)
    return found[1] if found else None


def file_key(parameter_name: str) -> str:
    """The parameter's name in the file of a plain PEFT adapter."""
    return PREFIX + _PARAMETER.sub(lambda found: found[0].replace(f".{found[1]}.", ".", 1), parameter_name)


def check_adapter_names(robots: list[str]) -> None:
    """Raise ValueError for robots whose name cannot be that of an adapter, or that come twice."""
    if not robots:
        raise ValueError("no robots to make adapters for; name at least one")
    for robot in robots:
        if robot == SHARED:
            raise ValueError(
                f"a robot cannot be called '{SHARED}': it is the adapter of all robots; rename it"
            )
        if not robot or "." in robot or hasattr(nn.ModuleDict(), robot):
            raise ValueError(
                f"a robot cannot be called '{robot}': adapters are submodules, whose names are not empty, "
                "have no dots and are no attributes of torch modules; rename it"
            )
        if robots.count(robot) > 1:
            raise ValueError(f"two robots are called '{robot}'; each wants an adapter of its own: rename one")
