"""What a run ran on: packages, commit, Python, platform, devices; and how two such places differ."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("vla_adapt", "torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "tokenizers")


def environment_facts(world: int) -> dict[str, Any]:
    """Facts of this process's machine and software, and of how many processes there are."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cuda": torch.version.cuda,
        "devices": devices,
        "processes": world,
    }


def changed_facts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`torch 2.12.0 -> 2.13.0` for each fact that changed, packages by their own name."""
    old, new = ({**facts.get("packages", {}), **facts} for facts in (before, now))
    keys = [key for key in {**old, **new} if key != "packages"]
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit this package is checked out at, marked when files differ from it; None outside of git."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
