"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import fake_data
from vla_adapt.policy.tiny import build_tiny_base
from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import train


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The workplace's `shared/` folder beside the repository; tests that need it skip elsewhere."""
    for candidate in (ROOT.parent / "shared", ROOT.parent.parent / "shared"):
        if (candidate / "openvla_parity").is_dir():
            return candidate
    pytest.skip("needs the workplace's shared/ folder beside the repository")


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny OpenVLA folder."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny", seed=3)


@pytest.fixture(scope="session")
def two_robot_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small RLDS datasets (train and val) of random episodes: robot -> folder."""
    root = tmp_path_factory.mktemp("episodes")
    folders = {}
    for seed, robot in enumerate(("ur5e", "bimanual_panda")):
        embodiment, rng = Embodiment.load(robot), np.random.default_rng(seed)
        with RldsWriter(root, f"{robot}_fake", embodiment) as writer:
            for split, count in (("train", 3), ("val", 1)):
                for _ in range(count):
                    writer.add(split, fake_data(embodiment, rng, length=7))
        folders[robot] = writer.path
    return folders


def recipe_for(data: dict[str, Path], base: Path, output: Path, /, **changes: object) -> Recipe:
    """A three-step LoRA recipe over `data`; `changes` replace top-level keys."""
    tree: dict[str, object] = {
        "name": "test",
        "base": str(base),
        "output": str(output),
        "mixture": [{"path": str(path)} for path in data.values()],
        "policy": {"head": {"kind": "parallel", "horizon": 4, "proprio": True}},
        "adaptation": {"kind": "lora", "rank": 4, "alpha": 8, "targets": "attention"},
        "train": {"steps": 3, "batch_size": 8, "log_every": 1},
    }
    return Recipe.model_validate(tree | changes)


@pytest.fixture(scope="session")
def make_recipe(two_robot_data: dict[str, Path], random_base: Path) -> Callable[..., Recipe]:
    """`make_recipe(output, **changes)` over the two fake robots and the untrained base."""
    return lambda output, **changes: recipe_for(two_robot_data, random_base, output, **changes)


@pytest.fixture(scope="session")
def finished_run(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished three-step run."""
    return train(make_recipe(tmp_path_factory.mktemp("run") / "r"))


@pytest.fixture
def killed_at() -> Callable[[int, Callable[[], object]], bool]:
    """(moment, action): run `action` in a process that ends before file operation `moment`; did it?"""
    return _killed_at


def _killed_at(moment: int, action: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        left = moment

        def deadly(genuine: Callable[..., Any]) -> Callable[..., Any]:
            def operation(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return genuine(*arguments, **options)

            return operation

        for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync", "chmod", "open"):
            setattr(os, name, deadly(getattr(os, name)))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
