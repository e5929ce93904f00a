"""Deterministic mode: the same seed, machine and number of processes give the same adapter, bit for bit.

It costs time: slower kernels on a GPU for some operations, an error for those that have no deterministic one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch uses deterministic kernels only, when `wanted`; enter before anything runs on a GPU.

    cuBLAS reads its workspace setting once, when it starts. Memory is not filled before use, as torch would:
    that finds bugs and costs time.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    try:
        _set(True, False, False)
        yield
    finally:
        _set(*before)


def _set(algorithms: bool, benchmark: bool, fill: bool) -> None:
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
