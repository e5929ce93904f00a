"""scripts/bench_train.py: no saving changes a number, and arithmetic is counted as PyTorch counts it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_adapt.training.flop_count import step_flops
from vla_adapt.training.flop_counter import flop_counter

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_train.py"
HEAVY = "tensorflow pyarrow datasets h5py av mujoco robosuite matplotlib simplejpeg"


def load(*names: str) -> Iterator[Any]:
    """Modules beside the script, found as `python scripts/bench_train.py` finds them."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield from map(importlib.import_module, names)
    finally:
        sys.path.remove(str(SCRIPT.parent))


script, steps, savings, clocks = load("bench_train", "compared_steps", "step_savings", "step_clocks")


@pytest.fixture(scope="module")
def bench() -> Any:
    torch.set_num_threads(1)
    return steps.Bench(steps.Size("tiny twin", 4, 1), "cpu")


def gradients(bench: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradients of a step of ours."""
    loss = bench.our_loss()["loss"]
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in steps.adapters(bench.model) if p.grad is not None])
    bench.model.zero_grad(set_to_none=True)
    return loss.item(), found


def test_ours_is_the_originals_step(bench: Any):
    difference = savings.difference(bench)
    assert difference["loss"] < 1e-6
    assert difference["gradient"] < 1e-5


@pytest.mark.parametrize("name", [*savings.OFF, "checkpointing"])
def test_no_saving_changes_loss_or_gradients(bench: Any, name: str):
    loss, wanted = gradients(bench)
    with savings.variants(bench)[name][1]():
        other, found = gradients(bench)
    assert other == pytest.approx(loss, rel=1e-6)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert gradients(bench)[0] == loss, "switched on again"


@pytest.mark.parametrize("name", ["ours", "baseline"])
def test_the_arithmetic_is_counted_right(bench: Any, name: str):
    with flop_counter() as counter:
        loss = bench.our_loss()["loss"] if name == "ours" else bench.plain_loss()[0]
        loss.backward()
    bench.model.zero_grad(set_to_none=True)
    counted = sum(step_flops(bench.model.config, script.work_of(bench)[name]).values())
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-5)  # see `test_flop_count`


def test_one_more_vision_block_runs_and_changes_nothing(bench: Any):
    with savings.last_vision_blocks(bench.model), flop_counter() as more:
        loss = bench.plain_loss()[0]
    with flop_counter() as counter:
        assert torch.equal(bench.plain_loss()[0], loss)
    assert more.get_total_flops() > counter.get_total_flops()


def test_peak_memory_is_measured():
    assert clocks.resident("VmHWM") >= clocks.resident("VmRSS") > 1e7


@pytest.mark.slow
def test_it_needs_few_libraries():
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import bench_train; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY.split()) & set(done.stdout.split())


@pytest.mark.slow
def test_both_steps_run_under_ddp(tmp_path: Path):
    file = tmp_path / "ddp.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--processes", "2", "--device", "cpu", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tiny twin, 2 processes (DDP), batch 32 each: " in done.stdout
    report = json.loads(file.read_text())
    assert report["processes"] == 2
    assert report["speedup_vs_baseline"] > 1.0
