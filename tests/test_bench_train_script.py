"""scripts/bench_train.py: no saving changes a number, and arithmetic is counted as PyTorch counts it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vla_adapt.training.flop_count import step_flops
from vla_adapt.training.flop_counter import flop_counter

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_train.py"
HEAVY = "tensorflow pyarrow datasets h5py av mujoco robosuite matplotlib simplejpeg"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_train"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


script: Any = load()


@pytest.fixture(scope="module")
def bench() -> Any:
    torch.set_num_threads(1)
    return script.Bench(script.Size("tiny twin", 4, 1), "cpu")


def gradients(bench: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradients of a step of ours."""
    loss = bench.our_loss()["loss"]
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in script.adapters(bench.model) if p.grad is not None])
    bench.model.zero_grad(set_to_none=True)
    return loss.item(), found


def test_ours_is_the_originals_step(bench: Any):
    difference = bench.difference()
    assert difference["loss"] < 1e-6
    assert difference["gradient"] < 1e-5


@pytest.mark.parametrize("name", [*script.OFF, "checkpointing"])
def test_no_saving_changes_loss_or_gradients(bench: Any, name: str):
    loss, wanted = gradients(bench)
    with script.variants(bench)[name][1]():
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
    assert counted == counter.get_total_flops()


def test_one_more_vision_block_runs_and_changes_nothing(bench: Any):
    with script.last_vision_blocks(bench.model), flop_counter() as more:
        loss = bench.plain_loss()[0]
    with flop_counter() as counter:
        assert torch.equal(bench.plain_loss()[0], loss)
    assert more.get_total_flops() > counter.get_total_flops()


def test_peak_memory_is_measured():
    assert script.resident("VmHWM") >= script.resident("VmRSS") > 1e7


@pytest.mark.slow
def test_it_needs_few_libraries():
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY.split()) & set(done.stdout.split())
