"""Fixtures of the judging tests: an ablation whose gains and losses are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vla_adapt.evaluation.ablation import Ablation
from vla_adapt.evaluation.ablation_run import CellResult
from vla_adapt.evaluation.seed_comparison import Comparison

PLANTED = Ablation(name="x", output="out", recipe="quickstart", variants={"own": {}, "harm": {}, "help": {}})
SHIFT = {"own": 0.0, "harm": 0.03, "help": -0.03}  # on the UR5e


def planted(seeds: int, success: bool = False) -> list[CellResult]:
    """Seeds differ by far more than the shift, and the same seed is alike in all variants."""
    rng = np.random.default_rng(0)
    by_seed = rng.normal(0.3, 0.1, seeds)
    return [
        CellResult(
            variant, seed,
            error={
                "ur5e": float(by_seed[seed] + SHIFT[variant] + rng.normal(0, 0.001)),
                "franka_panda": float(by_seed[seed] + rng.normal(0, 0.01)),
            },
            probe={"patches": 0.6 + 0.01 * seed}, probe_before={"patches": 0.99}, chance=0.5,
            success={"ur5e": (seed, 4), "franka_panda": (1, 4)} if success else {},
        )
        for seed in range(seeds)
        for variant in SHIFT
    ]  # fmt: skip


@pytest.fixture
def compare() -> Callable[..., Comparison]:
    """`compare(seeds, success=False, only=None)`: planted runs compared, those for which `only` holds."""

    def compare(
        seeds: int, success: bool = False, only: Callable[[CellResult], bool] = lambda run: True
    ) -> Comparison:
        return Comparison(PLANTED, [run for run in planted(seeds, success) if only(run)])

    return compare
