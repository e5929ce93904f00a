"""Time, arithmetic and memory of training steps: clocks, the matmul peak of a machine, resident memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def clock(device: str, work: Callable[[], Any]) -> float:
    """Seconds: of the wall on a GPU, of this process on a CPU, whoever else is busy."""
    if device == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter if device == "cuda" else time.process_time
    start = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


class Peak:
    """Rate of a large matrix product in the dtype of the steps, floating point operations per second."""

    def __init__(self, device: str) -> None:
        self.device, self.side = device, 8192 if device == "cuda" else 1024
        self.factor = torch.randn(self.side, self.side, device=device).to(
            torch.bfloat16 if device == "cuda" else torch.float32
        )

    def rate(self) -> float:
        times = 10 if self.device == "cuda" else 3
        taken = clock(self.device, lambda: [self.factor @ self.factor for _ in range(times)])
        return times * 2 * self.side**3 / taken


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (at the peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
