"""Launches of several training processes that cost no imports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Launch:
    """How a launch ended: exit status and what was printed, by rank."""

    codes: list[int]
    said: list[str]
    seconds: float


class Launcher:
    """Starts launches, one at a time, through `rank_zygote.py`."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "rank"
        self._zygote = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "rank_zygote.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def __call__(self, recipe: Recipe, world: int = 2, **order: Any) -> Launch:
        """One launch; `signal_at` seconds after file `wait_for` appears, `victims` get `signal` (SIGKILL)."""
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        order |= {"recipe": recipe.model_dump(mode="json"), "world": world, "log": str(self._log)}
        started = time.monotonic()
        print(json.dumps(order), file=self._zygote.stdin, flush=True)
        codes = json.loads(self._zygote.stdout.readline())
        said = [Path(f"{self._log}.{rank}").read_text() for rank in range(world)]
        return Launch(codes, said, time.monotonic() - started)

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.kill()  # nothing runs any more; a teardown of torch takes seconds
        self._zygote.wait()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """`launcher(recipe, world=2)`: real gloo processes that train, forked from one that is ready."""
    launcher = Launcher(tmp_path_factory.mktemp("ranks"))
    yield launcher
    launcher.close()
