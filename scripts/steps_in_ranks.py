"""Our step and the original's on several processes under torch's DDP, in turns; a process of each rank."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from compared_steps import Bench, Size
from rank_processes import outputs_of_ranks
from step_clocks import clock
from step_savings import llamas_own
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def in_ranks(command: Sequence[str], processes: int) -> dict[str, Any]:
    """Start `command` once per rank; what rank 0 printed last, as JSON."""
    return json.loads(outputs_of_ranks(command, processes)[0].splitlines()[-1])


def measure_rank(size: Size, device: str) -> dict[str, Any]:
    """What ranks took for a step of either kind, on average; this process is one of them, by its environment.

    On a CPU of processor time: ranks that wait for each other take none.
    """
    rank, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    theirs, ours = (Bench(size, device, seed=rank) for _ in range(2))  # reducers share no parameter
    # As OpenVLA's finetune.py wraps it, and as `training.launch` has Accelerate do it.
    theirs.plain_forward = _wrapped(theirs.plain_forward, device, gradient_as_bucket_view=True)
    ours.forwards["tokens"] = _wrapped(ours.forwards["tokens"], device)
    seconds: dict[str, list[float]] = {"baseline": [], "ours": []}
    walls: dict[str, list[float]] = {"baseline": [], "ours": []}
    with llamas_own(theirs.model):
        for turn in range(size.turns + 1):
            for name, step in (("baseline", theirs.baseline), ("ours", ours.ours)):
                dist.barrier()
                started = time.perf_counter()
                taken, wall = clock(device, step), time.perf_counter() - started
                if turn:  # the first one warms up
                    seconds[name].append(_over_ranks(taken))
                    walls[name].append(_over_ranks(wall))
    dist.destroy_process_group()
    return {
        "model": size.name, "processes": processes, "samples": size.samples,
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "wall_seconds": {name: median(taken) for name, taken in walls.items()},
        "speedup_vs_baseline": median(
            a / b for a, b in zip(seconds["baseline"], seconds["ours"], strict=True)
        ),
    }  # fmt: skip


def _wrapped(module: nn.Module, device: str, **options: Any) -> DistributedDataParallel:
    here = [torch.cuda.current_device()] if device == "cuda" else None
    return DistributedDataParallel(module, device_ids=here, find_unused_parameters=True, **options)


def _over_ranks(seconds: float) -> float:
    """The mean."""
    total = torch.tensor(seconds, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def show_ranks(row: dict[str, Any]) -> None:
    """In words."""
    times = {name: 1e3 * taken for name, taken in row["seconds"].items()}
    walls = {name: 1e3 * taken for name, taken in row["wall_seconds"].items()}
    print(
        f"{row['model']}, {row['processes']} processes (DDP), batch {row['samples']} each: "
        f"baseline {times['baseline']:.1f} ms a step, ours {times['ours']:.1f} ms: "
        f"{row['speedup_vs_baseline']:.2f} times "
        f"(by the wall {walls['baseline']:.1f} and {walls['ours']:.1f} ms)"
    )
