"""Routed LoRA under DistributedDataParallel: the gradients of two processes are those of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# Rank 0 has left and mid, rank 1 mid and right, nobody `absent`; two micro-batches are accumulated.
PROGRAM = """
import contextlib, os, sys
import torch
import torch.distributed as dist
from vla_adapt.adaptation.method import Lora, SharedLora
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.openvla import OpenVLA

base, out = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model = OpenVLA.from_pretrained(base)
Lora(rank=2, shared=SharedLora(rank=2)).prepare(model, ["absent", "left", "mid", "right"])
trained = {name: p for name, p in model.double().named_parameters() if p.requires_grad}
draw = torch.Generator().manual_seed(0)
for parameter in trained.values():
    torch.nn.init.normal_(parameter, std=0.1, generator=draw)
model.train().gradient_checkpointing_enable()
rows = ["left", "left", "mid", "mid", "mid", "right"]
ids = torch.randint(5, 200, (2, 6, 4), generator=draw)
pixels = torch.randn(2, 6, 6, 84, 84, generator=draw).double()

def gradients(module, share, scale):
    for micro in range(2):
        quiet = contextlib.nullcontext() if micro or module is model else module.no_sync()
        with quiet:
            with route(module, rows[share]):
                logits = module(ids[micro, share], pixel_values=pixels[micro, share]).logits
            (logits.square().mean(dim=(1, 2)).sum() * scale).backward()
    found = {name: None if p.grad is None else p.grad.clone() for name, p in trained.items()}
    model.zero_grad(set_to_none=True)
    return found

one = gradients(model, slice(0, 6), 1)
wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
two = gradients(wrapped, slice(3 * rank, 3 * rank + 3), world)
torch.save({"world": world, "one": one, "two": two}, f"{out}/rank{rank}.pt")
dist.barrier()
os._exit(0)  # in Python's teardown a thread of gloo aborts now and then
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(random_base: Path, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(program), str(random_base), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for rank in range(2):
        saved = torch.load(tmp_path / f"rank{rank}.pt")
        assert saved["world"] == 2
        assert len({name for name, grad in saved["one"].items() if grad is not None}) > 0
        for name, wanted in saved["one"].items():
            got = saved["two"][name]
            if wanted is None:
                assert ".absent." in name
                assert got is None, name
            else:
                assert ".absent." not in name
                torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
