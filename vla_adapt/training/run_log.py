"""What a run writes while it trains: progress bar, metrics.jsonl, throughput.jsonl, to its trackers.

A line of metrics.jsonl is of one robot and step: of training, or of validation with keys "validation/...".
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator

from vla_adapt.adaptation.folder import replace_text
from vla_adapt.evaluation.run_metrics import METRICS, THROUGHPUT
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.progress_bar import progress_bar
from vla_adapt.training.meter import Meter
from vla_adapt.training.setting import Setting
from vla_adapt.training.trackers import Trackers


class RunLog:
    """A context manager; every process takes part, the main one writes sums over all of them.

    Args:
        accelerator: of the run.
        setting: of the run.
        folder: where the files go.
        trackers: that get the same numbers.
        done: steps an interrupted run had finished; what it logged after them is dropped.
        sums: what this process had summed up since it last logged, or None.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        setting: Setting,
        folder: Path,
        trackers: Trackers,
        done: int,
        sums: torch.Tensor | None = None,
    ) -> None:
        self._accelerator, self._train = accelerator, setting.recipe.train
        self._meter = Meter({name: robot.normalizers[0] for name, robot in setting.robots.items()})
        if sums is not None:
            self._meter.sums.copy_(sums)
        self._trackers = trackers
        self._timed, self._since = done, time.perf_counter()
        self._main = accelerator.is_main_process
        if not self._main:
            return
        for name in (METRICS, THROUGHPUT):
            _keep_until(folder / name, done)
        self._file, self._timing = (folder / METRICS).open("a"), (folder / THROUGHPUT).open("a")
        self._opened = ExitStack()
        self._loss, self._validation = "-", ""
        self._shown = progress_bar("training", self._train.steps, "steps", done=done, keep=True)

    def __enter__(self) -> RunLog:
        if self._main:
            self._bar = self._opened.enter_context(self._shown)
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._opened.close()
            self._file.close()
            self._timing.close()

    def add(self, output: dict[str, torch.Tensor], batch: PolicyBatch) -> None:
        """Account for one pass; a step may have several."""
        self._meter.add(output, batch)

    def step(self, step: int, rate: float, last: bool = False) -> None:
        """Step number `step` (from 1) is finished; every `log_every`-th and the last are written."""
        if last or step % self._train.log_every == 0 or step == self._train.steps:
            sums = self._all_sums()
            self._meter.reset()
            if self._main:
                self._write(step, self._meter.summary(sums), rate)
        if self._main:
            self._bar.done = step

    def validation(self, step: int, found: dict[str, dict[str, float]], told: str) -> None:
        """Write metrics by robot, of held-out windows after `step` steps; `told` is shown beside the loss."""
        if not self._main:
            return
        tracked = {}
        for robot, metrics in found.items():
            named = {f"validation/{key}": value for key, value in metrics.items()}
            self._file.write(json.dumps({"step": step, "robot": robot, **named}) + "\n")
            tracked |= {f"validation/{robot}/{key}": value for key, value in metrics.items()}
        self._file.flush()
        self._trackers.log(tracked, step)
        self._validation = f"  validation {told}"
        self._bar.note = f"loss {self._loss}{self._validation}"
        print(f"step {step}: validation {told}", flush=True)

    @property
    def sums(self) -> torch.Tensor:
        """What this process has summed up since the last logged step."""
        return self._meter.sums

    def _all_sums(self) -> torch.Tensor:
        sums = self._accelerator.reduce(self._meter.sums.to(self._accelerator.device), reduction="sum")
        assert isinstance(sums, torch.Tensor)
        return sums

    def _write(self, step: int, summary: dict[str, dict[str, float]], rate: float) -> None:
        throughput = self._throughput(step)
        tracked = {"learning_rate": rate} | {f"throughput/{key}": value for key, value in throughput.items()}
        for robot, metrics in summary.items():
            row = {"step": step, "robot": robot, "learning_rate": rate, **metrics}
            self._file.write(json.dumps(row) + "\n")
            tracked |= {f"{robot}/{key}": value for key, value in metrics.items()}
        self._timing.write(json.dumps({"step": step, **throughput}) + "\n")
        self._file.flush()
        self._timing.flush()
        self._trackers.log(tracked, step)
        samples = sum(metrics["samples"] for metrics in summary.values())
        loss = sum(metrics["loss"] * metrics["samples"] for metrics in summary.values()) / samples
        self._loss = f"{loss:.4f}"
        self._bar.note = f"loss {self._loss}{self._validation}"

    def _throughput(self, step: int) -> dict[str, float]:
        """Of the steps since the last logged one and all that lay between them.

        It has a file of its own, as these numbers differ between equal runs.
        """
        now = time.perf_counter()
        steps, seconds = step - self._timed, now - self._since
        self._timed, self._since = step, now
        found = {
            "seconds_per_step": seconds / steps,
            "samples_per_s": steps * self._train.batch_size / seconds,
        }
        if self._accelerator.device.type == "cuda":
            found["peak_memory_gb"] = torch.cuda.max_memory_allocated(self._accelerator.device) / 1e9
        return found


def _keep_until(file: Path, step: int) -> None:
    """Drop the rows of later steps (all of them for step 0)."""
    lines = file.read_text().splitlines() if step and file.is_file() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    replace_text(file, "".join(f"{line}\n" for line in kept))
