"""Start Accelerate, and refuse the launches that would quietly train something else than asked for."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from vla_adapt.training.fsdp_launch import USE_FSDP, asks_for_fsdp, check_fsdp_options, fsdp_hidden
from vla_adapt.training.launch_command import asked_processes, launcher_command
from vla_adapt.training.parallelism import COMPILED, DDP, DEEPSPEED, FSDP2, ONE, Way


def start_accelerator(precision: str, patience: timedelta = timedelta(minutes=30)) -> Accelerator:
    """An Accelerator that really spans all launched processes, in the way that the launch asked for.

    Without a GPU Accelerate ignores `--num_processes` unless told to use the CPU, and leaves lone processes
    that each train alone; here the CPU (gloo) is chosen when no GPU is there, and the outcome is checked.

    Args:
        precision: "fp32" or "bf16".
        patience: how long the collectives of a step wait for the slowest process.

    Raises:
        ValueError: Accelerate joined fewer processes than were launched or fell back to another way, or the
            launch asks for what does not exist here: DeepSpeed, Megatron-LM, torch.compile, options of FSDP.
    """
    _refuse_strange_ways()
    # Gradients lie in the buckets that are reduced: else there are two of each.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    with fsdp_hidden():
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


def launched_way(processes: int) -> Way:
    """How the processes of the launch, so many, share the work."""
    if processes == 1:
        return ONE
    return FSDP2 if asks_for_fsdp() else DDP


def _refuse_strange_ways() -> None:
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        raise ValueError(f"the launch asks for ZeRO-{stage} (ACCELERATE_USE_DEEPSPEED): {DEEPSPEED}")
    if _is_set("ACCELERATE_USE_MEGATRON_LM"):
        raise ValueError(
            "the launch asks for Megatron-LM (ACCELERATE_USE_MEGATRON_LM), which has no OpenVLA; take "
            "recipes/launch/fsdp.yaml to shard a model"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise ValueError(
            f"the launch asks for torch.compile (ACCELERATE_DYNAMO_BACKEND={compiler}): {COMPILED}"
        )
    if asks_for_fsdp():
        check_fsdp_options()


def _check_way(accelerator: Accelerator) -> None:
    if asks_for_fsdp() and accelerator.num_processes == 1:
        raise ValueError(
            f"the launch asks for FSDP ({USE_FSDP}) over one process, which has nobody to share with; start "
            "two or more, or launch without FSDP (recipes/launch/gpu-1.yaml)"
        )
    if _is_set("ACCELERATE_USE_CPU") and accelerator.device.type != "cpu":
        raise ValueError(
            f"the launch asks for the CPU (ACCELERATE_USE_CPU), Accelerate took {accelerator.device}: "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
