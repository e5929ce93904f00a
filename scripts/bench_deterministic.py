#!/usr/bin/env python
"""What `train.deterministic` costs: time of a training step with and without it, in turns.

    python scripts/bench_deterministic.py [--quick] [--json FILE] [--device cpu|cuda] [--base DIR] [--batch N]

Two processes hold the same learner (two robots, LoRA on all linear layers) and the same batches; one of them
is deterministic, as cuBLAS reads its setting once in a process. They take turns of a few steps each: forward,
backward, clipping, optimizer, without loading. The ratio is of medians over turns; on a CPU of CPU seconds,
which a busy machine distorts less. It also says whether two such learners end with the same weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import fake_data
from vla_adapt.recipe import Recipe
from vla_adapt.resources import base_dir
from vla_adapt.training.determinism import deterministic
from vla_adapt.training.learner import Learner
from vla_adapt.training.loop import collate
from vla_adapt.training.optimizer import clip_per_robot, make_optimizer
from vla_adapt.training.setting import prepare

ROBOTS = ("ur5e", "franka_panda")
TURN = 3  # steps


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    asked.add_argument("--quick", action="store_true", help="fewer turns: under a minute on two cores")
    asked.add_argument("--json", type=Path, help="write the numbers there")
    asked.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: a GPU if any")
    asked.add_argument("--base", default="tiny", help="checkpoint folder, or 'tiny'")
    asked.add_argument("--batch", type=int, default=16)
    asked.add_argument("--worker", choices=("plain", "deterministic"), help=argparse.SUPPRESS)
    asked.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if given.worker:
        work(given.folder, given.worker == "deterministic", given.device, given.base, given.batch)
        return
    report = measure(given, turns=10 if given.quick else 30)
    print(
        f"{report['device_name']}: a step of {given.batch} samples takes {1000 * report['plain_s']:.1f} ms, "
        f"deterministic {1000 * report['deterministic_s']:.1f} ms: {report['ratio']:.3f} times "
        f"(turns: {report['ratio_low']:.3f} .. {report['ratio_high']:.3f}); same weights twice: "
        f"deterministic {report['deterministic_repeats']}, plain {report['plain_repeats']}"
    )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(given: argparse.Namespace, turns: int) -> dict[str, Any]:
    """Turns of both kinds; two learners of each kind one after the other in their process."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        record(folder)
        workers = {
            kind: opened.enter_context(Worker(given, kind, folder)) for kind in ("plain", "deterministic")
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in workers}
        for _ in range(turns):
            for kind, worker in workers.items():
                seconds[kind].append(worker.ask("turn"))
        repeats = {}
        for kind, worker in workers.items():
            repeats[f"{kind}_repeats"] = worker.ask("train") == worker.ask("train")
    ratios = sorted(d / p for d, p in zip(seconds["deterministic"], seconds["plain"], strict=True))
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, one thread"
    return {
        "device_name": device, "base": given.base, "batch": given.batch, "turns": turns,
        "plain_s": medians["plain"], "deterministic_s": medians["deterministic"],
        "ratio": medians["deterministic"] / medians["plain"], "ratio_low": ratios[0],
        "ratio_high": ratios[-1], **repeats,
    }  # fmt: skip


class Worker:
    """The other side of `work`."""

    def __init__(self, given: argparse.Namespace, kind: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", kind, "--folder", str(folder), "--base", given.base]
        self._command = [*command, "--device", given.device, "--batch", str(given.batch)]

    def __enter__(self) -> Worker:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def ask(self, what: str) -> Any:
        """Its answer to "turn" (seconds of a step) or "train" (checksum of the weights after a few steps)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended with status {self._process.wait()}; see above")
        return json.loads(answer)


def work(folder: Path, exact: bool, device: str, base: str, batch: int) -> None:
    """Answer orders from standard input, one JSON line each."""
    torch.set_num_threads(1)
    with deterministic(exact):
        trainer = Trainer(folder, device, base, batch)
        trainer.step()
        for order in sys.stdin:
            if order.strip() == "turn":
                answer: Any = trainer.turn()
            else:
                fresh = Trainer(folder, device, base, batch)
                for _ in range(TURN):
                    fresh.step()
                answer = fresh.checksum()
            print(json.dumps(answer), flush=True)


class Trainer:
    """A learner, its optimizer, and one batch after the other of a few that stay on the device."""

    def __init__(self, folder: Path, device: str, base: str, batch: int) -> None:
        setting = prepare(recipe(folder, base, batch, device))
        rows = partial(collate, setting.builder, list(setting.robots))
        loader = make_loader(setting.mixture, batch, steps=TURN, collate=rows)
        self._batches = [loaded.to(device) for loaded, _ in loader]
        self._learner: Learner = setting.learner.to(device).train()
        self._groups = self._learner.groups()
        optimizer = setting.recipe.train.optimizer
        self._optimizer, self._schedule = make_optimizer(optimizer, self._groups, 10_000)
        self._cuda, self._done = device == "cuda", 0
        torch.manual_seed(0)

    def step(self) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._cuda):
            loss = self._learner(self._batches[self._done % TURN])["loss"]
        loss.backward()
        clip_per_robot(self._groups.values(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1

    def turn(self) -> float:
        """Seconds of a step: of the CPU, or of the wall when a GPU works."""
        clock = time.perf_counter if self._cuda else time.process_time
        self._wait()
        started = clock()
        for _ in range(TURN):
            self.step()
        self._wait()
        return (clock() - started) / TURN

    def checksum(self) -> str:
        trained = [p.detach().float().cpu().numpy() for group in self._groups.values() for p in group]
        return sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in trained)).hexdigest()

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def recipe(folder: Path, base: str, batch: int, device: str) -> Recipe:
    """LoRA of rank 16 on all linear layers; in bfloat16 on a GPU."""
    head = {"kind": "parallel", "horizon": 8, "proprio": True}
    return Recipe.model_validate({
        "name": "bench", "output": str(folder / "run"), "base": str(base_dir(base)),
        "mixture": [{"path": str(folder / f"{robot}_fake")} for robot in ROBOTS],
        "policy": {"head": head, "head_from_base": False},
        "adaptation": {"kind": "lora", "rank": 16, "alpha": 32, "targets": "all_linear", "dropout": 0.05},
        "train": {"batch_size": batch, "precision": "bf16" if device == "cuda" else "fp32"},
    })  # fmt: skip


def record(folder: Path) -> None:
    """Random episodes of both robots."""
    for seed, robot in enumerate(ROBOTS):
        embodiment, rng = Embodiment.load(robot), np.random.default_rng(seed)
        with RldsWriter(folder, f"{robot}_fake", embodiment) as writer:
            for split in ("train", "train", "val"):
                writer.add(split, fake_data(embodiment, rng, length=32))


if __name__ == "__main__":
    main()
