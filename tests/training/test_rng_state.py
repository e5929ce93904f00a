"""Random generators go on where they were saved."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from vla_adapt.training.rng_state import restore_rng, save_rng


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), random.random(), float(np.random.standard_normal()), torch.rand(()).item()


def test_all_generators_go_on(tmp_path: Path):
    before = draw()  # leaves half a Gaussian pair behind, which is state too
    save_rng(tmp_path / "rng.pt")
    wanted = [draw() for _ in range(3)]
    assert wanted[0] != before
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    restore_rng(tmp_path / "rng.pt")
    assert [draw() for _ in range(3)] == wanted
