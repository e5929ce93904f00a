"""Real processes, really killed: the samples a run consumes are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vla_adapt.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, SAVE_EVERY = 12, 4, 3

# Stands for the machine's out-of-memory killer: one rank dies at a step, in the middle of everything.
KILLED = """
import os, runpy, signal, sys
from vla_adapt.training.run_log import RunLog
finish = RunLog.step
def step(log, number, *rest):
    finish(log, number, *rest)
    if number == int(os.environ["DIE_AT"]) and os.environ.get("RANK", "0") == os.environ["DIE_RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
RunLog.step = step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(
    recipe: Recipe, tmp_path: Path, processes: int, die: tuple[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    script = [str(ROOT / "scripts" / "finetune.py"), str(file)]
    if die is not None:
        (tmp_path / "killed.py").write_text(KILLED)
        script = [str(tmp_path / "killed.py"), *script]
    several = ["--multi_gpu"] if processes > 1 else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", *script,
    ]  # fmt: skip
    step, rank = die or (0, 0)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1500, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DIE_AT": str(step), "DIE_RANK": str(rank)},
    )  # fmt: skip


def consumed(folder: Path) -> list[tuple[str, ...]]:
    """(step, sample, dataset, episode, step of it) over all ranks, in the order of sample numbers."""
    files = sorted((folder / "samples").glob("rank*.tsv"))
    rows = [tuple(line.split("\t")) for file in files for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row[1]))


def logged(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row.pop("step"), row.pop("robot")): row for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_a_killed_run_consumes_the_samples_of_an_undisturbed_one(
    make_recipe: Callable[..., Recipe], tmp_path: Path
):
    """2 ranks; killed; resumed with another worker count; killed again; ended by 1 rank."""

    def recipe(name: str, workers: int) -> Recipe:
        train = {
            "steps": STEPS, "batch_size": BATCH, "log_every": 5, "save_every": SAVE_EVERY,
            "workers": workers, "log_samples": True,
        }  # fmt: skip
        return make_recipe(str(tmp_path / name), train=train)

    whole = launch(recipe("whole", 0), tmp_path, 2)
    assert whole.returncode == 0, whole.stderr[-3000:]
    wanted = consumed(tmp_path / "whole")
    assert [int(row[1]) for row in wanted] == list(range(STEPS * BATCH))
    assert [int(row[0]) for row in wanted] == [1 + n // BATCH for n in range(STEPS * BATCH)]
    assert len({row[2:] for row in wanted}) > STEPS, "not one and the same step over and over"

    chance = random.Random()
    first = chance.randint(SAVE_EVERY + 1, 2 * SAVE_EVERY), chance.randrange(2)
    second = chance.randint(2 * SAVE_EVERY + 1, STEPS - 1), chance.randrange(2)
    print(f"killed at (step, rank): {first}, {second}")
    for workers, die in ((0, first), (2, second)):
        result = launch(recipe("cut", workers), tmp_path, 2, die)
        assert result.returncode != 0
        assert not (tmp_path / "cut" / "summary.json").exists()
        assert (tmp_path / "cut" / "resume.pt").exists()
        assert die is first or "resuming after step" in result.stdout, result.stdout[-3000:]
    last = launch(recipe("cut", 1), tmp_path, 1)
    assert last.returncode == 0, last.stderr[-3000:]
    assert "resuming after step" in last.stdout
    assert consumed(tmp_path / "cut") == wanted
    one, two = logged(tmp_path / "whole"), logged(tmp_path / "cut")
    assert one.keys() == two.keys()
    for key in one:
        assert one[key]["samples"] == two[key]["samples"], "sums since the last logged step are kept"
        assert one[key]["loss"] == pytest.approx(two[key]["loss"], abs=1e-5)
