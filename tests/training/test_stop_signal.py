"""Pre-emption: all processes stop after the same step, saved; the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.stop_signal import SIGNALS, Stopped, StopSignal, spare_once

MakeRecipe = Callable[..., Recipe]


def alone() -> StopSignal:
    return StopSignal(Ranks(Accelerator(cpu=True)), timedelta(seconds=5))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals):
    before = signal.getsignal(number)
    with alone() as stop:
        assert stop.agreed() == 0
        os.kill(os.getpid(), number)
        assert stop.agreed() == number
        os.kill(os.getpid(), number)  # schedulers and launchers both send it
        assert stop.agreed() == number
    assert signal.getsignal(number) == before


def signal_self_first(item: int) -> int:
    if item == 0:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        time.sleep(0.05)
    return item


class Items:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, item: int) -> int:
        return signal_self_first(item)


def test_loader_processes_live_through_a_signal_to_the_whole_job():
    loader = DataLoader(Items(), batch_size=None, num_workers=1, worker_init_fn=spare_once)  # type: ignore[arg-type]
    assert [int(item) for item in loader] == [0, 1, 2]


def test_a_stopped_run_goes_on(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train = {"steps": 4, "batch_size": 8, "log_every": 3, "workers": 1}
    whole = loop.train(make_recipe(str(tmp_path / "whole"), train=train))
    genuine = loop._check_finite

    def preempt(*arguments: Any) -> None:
        if arguments[-1] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(*arguments)

    recipe = make_recipe(str(tmp_path / "cut"), train=train)
    monkeypatch.setattr(loop, "_check_finite", preempt)
    with pytest.raises(
        Stopped, match=r"stopped by SIGTERM after step 2; the last checkpoint is .*step-00000002;"
    ):
        loop.train(recipe)
    monkeypatch.setattr(loop, "_check_finite", genuine)
    cut = loop.train(recipe)
    files = [
        "metrics.jsonl",
        *(f"bundles/{robot}/adapter_model.safetensors" for robot in ("ur5e", "bimanual_panda")),
    ]
    assert [file for file in files if (whole / file).read_bytes() != (cut / file).read_bytes()] == []


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    make_recipe: MakeRecipe, launcher, tmp_path: Path
):
    recipe = make_recipe(str(tmp_path / "r"), train={"steps": 2000, "batch_size": 4, "save_every": 2})
    reached = 0
    for number, victim in ((signal.SIGUSR1, 1), (signal.SIGTERM, 0)):
        wait_for = tmp_path / "r" / "checkpoints" / f"step-{reached // 2 * 2 + 2:08d}" / "manifest.json"
        launch = launcher(recipe, signal_at=0.05, wait_for=str(wait_for), victims=[victim], signal=number)
        assert launch.codes == [1, 1], launch.said
        assert ("resuming after step" in launch.said[0]) == bool(reached)
        said = [
            re.search(
                r"Stopped: stopped by (\w+) after step (\d+); the last checkpoint is .*step-0*(\d+);", each
            )
            for each in launch.said
        ]
        assert said[0] is not None
        assert said[1] is not None
        assert said[0].groups() == said[1].groups()
        assert said[0][1] == number.name
        assert said[0][2] == said[0][3]
        before, reached = reached, int(said[0][2])
        assert before < reached < 2000
