"""The same seed, machine and number of processes: the same adapter, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.determinism import deterministic

MakeRecipe = Callable[..., Recipe]
TRAIN = {"steps": 3, "batch_size": 8, "deterministic": True, "log_every": 1}
METHOD = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.2, "targets": "all_linear"}


def left(run: Path) -> dict[str, bytes]:
    files = [run / "metrics.jsonl", *run.glob("bundles/*/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def test_only_inside_and_only_when_wanted():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_process_twice(make_recipe: MakeRecipe, tmp_path: Path):
    runs = []
    for name in ("one", "two"):
        torch.rand(5)  # whatever ran before must not matter
        runs.append(left(loop.train(make_recipe(str(tmp_path / name), train=TRAIN, adaptation=METHOD))))
    assert len(runs[0]) == 5
    assert runs[0] == runs[1]
    other = loop.train(make_recipe(str(tmp_path / "three"), train=TRAIN, adaptation=METHOD, seed=1))
    assert left(other) != runs[0]


@pytest.mark.slow
def test_two_processes_twice(make_recipe: MakeRecipe, launcher, tmp_path: Path):
    for name in ("one", "two"):
        launch = launcher(make_recipe(str(tmp_path / name), train=TRAIN, adaptation=METHOD))
        assert launch.codes == [0, 0], launch.said
    assert left(tmp_path / "one") == left(tmp_path / "two")
