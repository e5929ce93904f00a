"""Start Accelerate, and refuse the launches that would quietly train something else than asked for."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from vla_adapt.training.launch_command import asked_processes, launcher_command

# What a launch config asks for by an environment variable, and the types of Accelerate that are it.
_ASKED = {
    "ACCELERATE_USE_FSDP": ("FSDP", {"FSDP"}),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", {"DEEPSPEED"}),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", {"MEGATRON_LM"}),
}


def start_accelerator(precision: str, patience: timedelta = timedelta(minutes=30)) -> Accelerator:
    """An Accelerator that really spans all launched processes, in the way that the launch asked for.

    Without a GPU Accelerate ignores `--num_processes` unless told to use the CPU, and leaves lone processes
    that each train alone; here the CPU (gloo) is chosen when no GPU is there, and the outcome is checked.

    Args:
        precision: "fp32" or "bf16".
        patience: how long the collectives of a step wait for the slowest process.

    Raises:
        ValueError: Accelerate joined fewer processes than were launched, or fell back to another way.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=patience)],
        cpu=not torch.cuda.is_available(),
    )
    _check_processes(accelerator)
    _check_way(accelerator)
    return accelerator


def _check_processes(accelerator: Accelerator) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ValueError(
            f"launched {launched} processes, Accelerate joined {accelerator.num_processes} "
            f"({accelerator.distributed_type}); each would train alone: check the launch config"
        )
    asked = asked_processes(launcher_command()) if launched == 1 else launched
    if asked > 1 and os.environ.get("WORLD_SIZE") is None:
        raise ValueError(
            f"accelerate was told to launch {asked} processes and started one; several need "
            f"`accelerate launch --multi_gpu --num_processes {asked}`, on CPUs too"
        )


def _check_way(accelerator: Accelerator) -> None:
    got = accelerator.distributed_type.value
    for variable, (name, types) in _ASKED.items():
        if _is_set(variable) and got not in types:
            reason = (
                "it needs a GPU, and torch sees none" if not torch.cuda.is_available() else "check its config"
            )
            raise ValueError(
                f"the launch asks for {name} ({variable}), Accelerate made it {got}: {reason}; with "
                "recipes/launch/cpu-2.yaml two processes train on the CPU"
            )
    if _is_set("ACCELERATE_USE_CPU") and accelerator.device.type != "cpu":
        raise ValueError(
            f"the launch asks for the CPU (ACCELERATE_USE_CPU), Accelerate took {accelerator.device}: "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
