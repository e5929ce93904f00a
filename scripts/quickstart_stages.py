"""The stages of ./scripts/quickstart once the environment is there; each is a command you could type."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vla_adapt.evaluation.local_server import local_server
from vla_adapt.recipe import Recipe
from vla_adapt.resources import base_dir
from vla_adapt.training.finished_run import changed_since

RUN = Path("runs/quickstart")
READY = RUN / "server.url"
ROBOTS = ("franka_panda", "ur5e", "bimanual_panda", "mobile_panda")
EPISODES, HELD_OUT = 98, 6
PRETRAIN_EPISODES = 400
# (recipe, robot, label). Those of the UR5e share episodes, steps and batch. The Franka's blind twin is
# compared with the quickstart's own Franka adapter, which saw as many samples.
CONTROLS = (
    ("control_ur5e_lora", "ur5e", "LoRA"),
    ("control_ur5e_base", "ur5e", "base alone"),
    ("control_ur5e_scratch", "ur5e", "from scratch"),
    ("control_ur5e_head", "ur5e", "head only"),
    ("control_ur5e_blind", "ur5e", "LoRA, blind"),
    ("control_panda_blind", "franka_panda", "LoRA, blind"),
    ("control_ur5e_tokens", "ur5e", "LoRA, token head"),
)
CONTROL_EPISODES = 100
BIN = Path(sys.executable).parent
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP's note that this batch used every adapter
PATH = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
ENVIRONMENT = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1", "PATH": PATH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--controls", action="store_true", help="also train and drive the controls (about 20 minutes)"
    )
    parser.add_argument(
        "--pretrain", action="store_true", help="rebuild the shipped tiny base first (about 25 minutes)"
    )
    parser.add_argument("--episodes", type=int, default=20, help="closed-loop episodes per robot")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.pretrain:
        pretrain()
    stage(
        "1/5 record",
        f"{EPISODES} + {HELD_OUT} noisy-expert episodes of each robot in simulation",
        "3 minutes",
    )
    for robot in ROBOTS:
        record(robot, RUN / "episodes", EPISODES, HELD_OUT, 1)
    stage("2/5 train", "one LoRA adapter per robot, one run, two processes", "7 minutes")
    finetune("quickstart")
    stage("3/5 verify", "replay every bundle's golden observation -> action pair", "10 seconds")
    run("vla-adapt", "adapters", "verify", str(RUN / "bundles"), "--base", "tiny")
    stage(
        "4/5 drive",
        f"serve all robots from one base and drive {arguments.episodes} episodes each",
        "4 minutes",
    )
    drive_all(arguments.episodes)
    if arguments.controls:
        controls()
    stage("5/5 report", "curves, tables, predicted against recorded actions, camera frames", "10 seconds")
    run("vla-adapt", "report", str(RUN), "--out", str(RUN / "report.html"))
    summary()
    say(f"Done in {(time.perf_counter() - started) / 60:.1f} minutes. Look at {RUN / 'report.html'}")


def pretrain() -> None:
    """Rebuild the tiny base and put it where the package ships it (bf16)."""
    folder = Path("runs/pretrain_tiny")
    stage(
        "pretrain", f"{PRETRAIN_EPISODES} Franka episodes, every parameter of the tiny OpenVLA", "25 minutes"
    )
    record("franka_panda", folder / "episodes", PRETRAIN_EPISODES, 10, 0, "--no-slips")
    finetune("pretrain_tiny")
    run(sys.executable, "scripts/ship_tiny_base.py", str(folder / "model"))


def record(robot: str, folder: Path, episodes: int, held_out: int, seed: int, *options: str) -> None:
    counts = ("--episodes", str(episodes), "--held-out", str(held_out), "--seed", str(seed))
    run("vla-adapt", "sim", "record", robot, "--out", str(folder), "--overwrite", *counts, *options)


def finetune(recipe: str, *overrides: str) -> None:
    launch = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    changes = [word for override in overrides for word in ("--set", override)]
    loaded = Recipe.load(recipe, [*overrides])
    if changed_since(Path(loaded.output), loaded):  # it is of another version of the recipe
        changes.append("--fresh")
    run(*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "scripts/finetune.py", recipe, *changes)


def drive_all(episodes: int) -> None:
    """Closed loop of the quickstart's four adapters; kept when it was done for these very bundles."""
    out = RUN / "closed_loop.json"
    if up_to_date(out, [RUN / "summary.json"], episodes, len(ROBOTS)):
        say(f"already driven: {out}")
        return
    out.unlink(missing_ok=True)
    with local_server(base_dir("tiny"), RUN / "bundles", READY) as url:
        for robot in ROBOTS:
            drive(url, robot, "LoRA", episodes, out)


def controls() -> None:
    """Train every control; drive each through a server of its own, more episodes, the same seeds."""
    out = RUN / "controls.json"
    if out.is_file() and out.stat().st_mtime < (RUN / "summary.json").stat().st_mtime:
        out.unlink()
    rows = json.loads(out.read_text()) if out.is_file() else []
    done = {(row["robot"], row["label"]) for row in rows}
    if ("franka_panda", "LoRA") not in done:
        with local_server(base_dir("tiny"), RUN / "bundles", READY) as url:
            drive(url, "franka_panda", "LoRA", CONTROL_EPISODES, out)
    for recipe, robot, label in CONTROLS:
        stage("control", f"{robot}: {label}", "3 minutes")
        finetune(recipe)
        if (robot, label) in done:
            continue
        folder = Path("runs") / recipe
        with local_server(base_of(folder), folder / "bundles", READY) as url:
            drive(url, robot, label, CONTROL_EPISODES, out)


def base_of(run: Path) -> Path:
    """The base that a run left, or the shipped one, which it did not change."""
    return run / "model" if (run / "model").is_dir() else base_dir("tiny")


def drive(url: str, robot: str, label: str, episodes: int, out: Path) -> None:
    cell = ("--robot", robot, "--label", label, "--episodes", str(episodes))
    run("vla-adapt", "evaluate", "--closed-loop", "--url", url, *cell, "--out", str(out), "--append")


def up_to_date(out: Path, sources: list[Path], episodes: int, cells: int) -> bool:
    if not out.is_file() or any(source.stat().st_mtime > out.stat().st_mtime for source in sources):
        return False
    rows = json.loads(out.read_text())
    return len(rows) == cells and all(row["episodes"] == episodes for row in rows)


def summary() -> None:
    """The table of the README."""
    open_loop = {row["robot"]: row for row in json.loads((RUN / "open_loop.json").read_text())}
    print(f"\n{'robot':16s} {'open-loop error':>16s} {'predict-the-mean':>17s}   closed-loop success (95 %)")
    for row in json.loads((RUN / "closed_loop.json").read_text()):
        mine, (low, high) = open_loop[row["robot"]], row["interval_95"]
        print(
            f"{row['robot']:16s} {mine['error']:16.3f} {mine['baseline_error']:17.3f}   "
            f"{row['successes']}/{row['episodes']} [{100 * low:.0f}, {100 * high:.0f}] %"
        )
    if (RUN / "controls.json").is_file():
        print(f"\n{'robot':16s} {'control':16s} closed-loop success (95 %)")
        for row in json.loads((RUN / "controls.json").read_text()):
            low, high = row["interval_95"]
            rate = f"{row['successes']}/{row['episodes']} [{100 * low:.0f}, {100 * high:.0f}] %"
            print(f"{row['robot']:16s} {row['label']:16s} {rate}")
    worse = [name for name, row in open_loop.items() if row["error"] >= row["baseline_error"]]
    if worse:
        raise SystemExit(f"open loop no better than predicting the mean: {', '.join(worse)}")


def run(*command: str) -> None:
    program = command[0] if command[0].startswith("/") else str(BIN / command[0])
    if not shutil.which(program):
        raise SystemExit(f"{program} is missing; delete .venv and run ./scripts/quickstart again")
    finished = subprocess.run([program, *command[1:]], env=ENVIRONMENT, check=False)
    if finished.returncode:
        raise SystemExit(f"failed ({finished.returncode}): {' '.join(command)}")


def stage(name: str, what: str, duration: str) -> None:
    say(f"\n== {name}: {what} (about {duration})")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # of the server
        raise SystemExit(str(error)) from None
