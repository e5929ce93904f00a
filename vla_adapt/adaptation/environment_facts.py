"""What a bundle was made on: packages, commit, machine, devices, command; and how two such places differ."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from vla_adapt.adaptation.folder import replace_text

ENVIRONMENT = "environment.json"
PACKAGES = ("vla_adapt", "torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "tokenizers")
_CPU_INFO, _DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")


def environment_facts(world: int) -> dict[str, Any]:
    """Facts of this process's machine and software, and of how many processes there are."""
    return {
        # A CUDA wheel of torch leaves out of its metadata which CUDA it is for.
        "packages": {name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": world,
    }


def changed_facts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`torch 2.12.0 -> 2.13.0` for each fact of both that changed, packages by their own name."""
    old, new = ({**facts.get("packages", {}), **facts} for facts in (before, now))
    keys = [key for key in old if key in new and key != "packages"]
    return [f"{key} {old[key]} -> {new[key]}" for key in keys if old[key] != new[key]]


def this_start(world: int = 1, after_step: int = 0) -> dict[str, Any]:
    """The facts and `after_step`, `started` (UTC) and `command`.

    No host or user name, but the command line as it was typed.
    """
    return {
        "after_step": after_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        **environment_facts(world),
    }


def note_start(folder: Path, world: int, after_step: int) -> None:
    """Add this start of a run to the list in its `environment.json`; a run from step 0 begins a new one."""
    starts = [*(read_starts(folder) if after_step else []), this_start(world, after_step)]
    replace_text(folder / ENVIRONMENT, json.dumps(starts, indent=1) + "\n")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of the run in `folder`, oldest first; none when it has no `environment.json`."""
    file = folder / ENVIRONMENT
    return json.loads(file.read_text()) if file.is_file() else []


def _command() -> str:
    """As it was typed, but for the folder of the program."""
    program = Path(sys.argv[0])
    named = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*named, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit this package is checked out at, "-dirty" when files differed from it as it was first asked.

    None where the package is no part of the repository around it, as when it is installed in a `.venv`.
    """
    here = Path(__file__)
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    return tracked and _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def _cpu() -> str | None:
    """Name of the processor."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _driver() -> str | None:
    """Version of the NVIDIA driver, as its kernel module says it."""
    if not _DRIVER.is_file():
        return None
    words = _DRIVER.read_text().split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)
