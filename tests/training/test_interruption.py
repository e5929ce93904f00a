"""Real launchers, killed and pre-empted: what the user reads, and which samples the run consumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from vla_adapt.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, SAVE_EVERY = 60, 4, 3


def recipe_in(make_recipe: Callable[..., Recipe], folder: Path, workers: int) -> Recipe:
    train = {
        "steps": STEPS, "batch_size": BATCH, "log_every": 5, "save_every": SAVE_EVERY,
        "workers": workers, "log_samples": True,
    }  # fmt: skip
    return make_recipe(str(folder), train=train)


def start(recipe: Recipe, tmp_path: Path, processes: int) -> subprocess.Popen[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    config = ROOT / "recipes" / "launch" / ("cpu-2.yaml" if processes == 2 else "gpu-1.yaml")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
        str(ROOT / "scripts" / "finetune.py"), str(file),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(run: Path, step: int) -> None:
    """Until a checkpoint of `step` or a later one is there."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if any(entry.name >= f"step-{step:08d}" for entry in (run / "checkpoints").glob("step-*")):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step}")


def children(launcher: subprocess.Popen[str]) -> list[int]:
    """The launcher's processes, by rank."""
    pids = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks[next((int(each[5:]) for each in environment if each.startswith(b"RANK=")), 0)] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


def end(pids: list[int], within_s: float = 20) -> bool:
    """Whether all processes end. A dead one may stay as a zombie: its parent, the launcher, is gone too; one
    that has said all it has to say still takes apart what it holds.
    """

    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + within_s
    while any(map(lives, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def newest(run: Path) -> int:
    return max(int(entry.name.removeprefix("step-")) for entry in (run / "checkpoints").glob("step-*"))


def consumed(folder: Path) -> list[tuple[str, ...]]:
    """(step, sample, dataset, episode, step of it) over all ranks, in the order of sample numbers."""
    files = sorted((folder / "samples").glob("rank*.tsv"))
    rows = [tuple(line.split("\t")) for file in files for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row[1]))


def logged(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row.pop("step"), row.pop("robot")): row for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disturbed_run_consumes_the_samples_of_an_undisturbed_one(
    make_recipe: Callable[..., Recipe], launcher, tmp_path: Path
):
    """A rank killed; pre-empted with another number of workers, then on one rank; ended by two."""
    run = tmp_path / "cut"
    killed = start(recipe_in(make_recipe, run, 0), tmp_path, 2)
    wait_for_step(run, SAVE_EVERY)
    os.kill(children(killed)[1], signal.SIGKILL)
    started = time.monotonic()
    _, said = killed.communicate(timeout=100)
    assert time.monotonic() - started < 60
    assert killed.returncode != 0
    (line,) = [line for line in said.splitlines() if line.startswith("finetune: ")]
    assert line.startswith("finetune: rank 1 (process ")
    assert ") died; the last checkpoint is " in line
    assert line.endswith(f"{run}/checkpoints/step-{newest(run):08d}; the same command goes on from there")

    for processes, workers in ((2, 2), (1, 1)):
        before = newest(run)
        preempted = start(recipe_in(make_recipe, run, workers), tmp_path, processes)
        wait_for_step(run, before + 1)
        ranks = children(preempted)
        assert len(ranks) == processes
        preempted.terminate()
        printed, said = preempted.communicate(timeout=100)
        assert f"resuming after step {before}" in printed
        assert f"finetune: stopped by SIGTERM after step {newest(run)}; " in said
        assert end(ranks), "left alone by the launcher"

    assert newest(run) < STEPS
    last = launcher(recipe_in(make_recipe, run, 1))
    assert last.codes == [0, 0], last.said
    whole = launcher(recipe_in(make_recipe, tmp_path / "whole", 0))
    assert whole.codes == [0, 0], whole.said
    wanted = consumed(tmp_path / "whole")
    assert [int(row[1]) for row in wanted] == list(range(STEPS * BATCH))
    assert [int(row[0]) for row in wanted] == [1 + n // BATCH for n in range(STEPS * BATCH)]
    assert len({row[2:] for row in wanted}) > STEPS // 2, "not one and the same step over and over"
    assert consumed(run) == wanted
    one, two = logged(tmp_path / "whole"), logged(run)
    assert one.keys() == two.keys()
    for key in one:
        assert one[key]["samples"] == two[key]["samples"], "sums since the last logged step are kept"
        assert one[key]["loss"] == pytest.approx(two[key]["loss"], abs=1e-4)
