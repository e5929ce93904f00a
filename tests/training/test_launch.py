"""Launches through `accelerate launch`: one and two processes, and what goes wrong said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator

from vla_adapt.recipe import Recipe
from vla_adapt.training import launch as launching

ROOT = Path(__file__).resolve().parents[2]


def losses(folder: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], row["robot"]): row["loss"] for row in rows}


def launch(
    recipe: Recipe, folder: Path, processes: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    several = ["--multi_gpu"] if processes > 1 else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", str(ROOT / "scripts" / "finetune.py"), str(file),
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_losses(make_recipe: Callable[..., Recipe], tmp_path: Path):
    folders = {}
    for processes in (1, 2):
        folder = tmp_path / f"ranks{processes}"
        result = launch(make_recipe(str(folder)), folder, processes)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"{processes} process(es)" in result.stdout
        folders[processes] = folder
    one, two = losses(folders[1]), losses(folders[2])
    assert one.keys() == two.keys()
    assert max(abs(one[key] - two[key]) for key in one) < 1e-5


@pytest.mark.slow
def test_a_recipe_that_cannot_run_ends_all_processes_with_one_line(
    make_recipe: Callable[..., Recipe], tmp_path: Path
):
    recipe = make_recipe(str(tmp_path / "r"), mixture=[{"path": str(tmp_path / "nowhere")}])
    result = launch(recipe, tmp_path / "r", 2)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("finetune: ")]
    assert len(said) == 1, result.stderr[-3000:]
    assert "nowhere" in said[0]
    assert "exitcode  : 2" in result.stderr


def test_a_launch_that_would_train_alone_is_refused(monkeypatch: pytest.MonkeyPatch):
    alone = Accelerator(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launching, "Accelerator", lambda **options: alone)
    with pytest.raises(ValueError, match="launched 2 processes, Accelerate joined 1"):
        launching.start_accelerator("fp32")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launching.start_accelerator("fp32") is alone
