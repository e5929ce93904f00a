"""Start Accelerate, and refuse the launches that would quietly train something else than asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list

Made = TypeVar("Made")

# The others wait this long while the main process indexes a large dataset or judges a large model.
PATIENCE = timedelta(hours=4)
# A launcher kills all processes once one has failed: the main one first gets this long to say why.
LAST_WORDS_S = 60.0


def start_accelerator(precision: str) -> Accelerator:
    """An Accelerator that really spans all launched processes.

    Without a GPU Accelerate ignores `--num_processes` unless told to use the CPU, and leaves lone processes
    that each train alone; here the CPU (gloo) is chosen when no GPU is there, and the outcome is checked.

    Raises:
        ValueError: the launcher started more processes than Accelerate joined together.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=PATIENCE)],
        cpu=not torch.cuda.is_available(),
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"launched {launched} processes, Accelerate joined {accelerator.num_processes} "
            f"({accelerator.distributed_type}); each would train alone: check the launch config"
        )
    return accelerator


def main_first(accelerator: Accelerator, make: Callable[[], Made]) -> Made:
    """`make()` on the main process, then, reading the caches it left, on the others.

    Raises:
        ValueError: of the main process, on the main process.
        SystemExit: on the others then; they say nothing, and the launcher mostly ends them before.
    """
    mine: list[Made] = []
    error: ValueError | None = None
    if accelerator.is_main_process:
        try:
            mine.append(make())
        except ValueError as raised:
            error = raised
    failed = broadcast_object_list([error is not None])[0]
    if error is not None:
        raise error
    if failed:
        time.sleep(LAST_WORDS_S)
        raise SystemExit(2)
    return mine[0] if mine else make()
