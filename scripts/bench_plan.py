"""Planned against measured memory of training steps, each measured in a process of its own.

scripts/bench_plan.py [--quick] [--json FILE] [--device cpu|cuda]

On a CPU: the peak of resident memory over what the process had before, with a malloc that returns freed
blocks (all that the plan counts but "allocator"), and with glibc's default. On a GPU: PyTorch's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training.optimizer import make_optimizer
from vla_adapt.training.plan import make_plan
from vla_adapt.training.plan_data import look_at_data, plan_batch
from vla_adapt.training.setting import make_learner

PARALLEL = {"kind": "parallel", "horizon": 8}
LORA = {"kind": "lora", "rank": 32, "targets": "all_linear"}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# name, robots, head, adaptation, train
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "lora, batch 2": (1, PARALLEL, LORA, {"batch_size": 2}),
    "lora, batch 8": (1, PARALLEL, LORA, {"batch_size": 8}),
    "lora, 2 robots + shared": (2, PARALLEL, {**LORA, "shared": {"rank": 16}}, {"batch_size": 4}),
    "lora, bf16": (1, PARALLEL, LORA, {"batch_size": 8, "precision": "bf16"}),
    "lora, checkpointing": (1, PARALLEL, LORA, {"batch_size": 8, "checkpointing": True}),
    "lora, tokens": (1, {"kind": "tokens", "horizon": 1}, LORA, {"batch_size": 4}),
    "lora, accumulate 2": (1, PARALLEL, LORA, {"batch_size": 4, "accumulate": 2}),
    "full": (1, PARALLEL, {"kind": "full"}, {"batch_size": 2}),
    "head only": (1, PARALLEL, {"kind": "head_only"}, {"batch_size": 8}),
}
QUICK = ("lora, batch 2", "full")


def write_base(folder: Path, width: int, layers: int) -> Path:
    """A folder with the `config.json` of a model between the tiny twin and OpenVLA-7B, without weights."""
    tower = {
        "width": width // 2,
        "depth": layers,
        "heads": width // 128,
        "patch_size": 14,
        "mlp_width": 2 * width,
    }
    raw = {
        "model_type": "openvla",
        "image_sizes": [224, 224],
        "vision_towers": [{**tower, "registers": 4}, {**tower, "registers": 0}],
        "text_config": {
            "hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": layers,
            "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "vocab_size": 8064,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def recipe_of(name: str, base: Path) -> Recipe:
    robots, head, adaptation, train = CASES[name]
    embodiments = ("ur5e", "mobile_panda")[:robots]
    return Recipe.model_validate({
        "name": "bench", "base": str(base), "output": str(base / "out"), "adaptation": adaptation,
        "mixture": [{"path": str(base / "no_data"), "embodiment": robot} for robot in embodiments],
        "policy": {"head": head, "head_from_base": False}, "train": train,
    })  # fmt: skip


def measure(recipe: Recipe, device: str, steps: int = 2) -> int:
    """Bytes at the peak of real steps on random weights, over what was there before."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    torch.set_num_threads(1)
    before = _resident("VmRSS") if device == "cpu" else 0
    with torch.device("meta"):
        model = OpenVLA.without_weights(Path(recipe.base), dtype=dtype)
        data = look_at_data(recipe, model.source)
        learner = make_learner(recipe, model, list(data.masks), [])
    learner.to_empty(device=device)
    model.restore_buffers(device)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(std=0.02)
    groups = learner.groups()
    optimizer, _ = make_optimizer(recipe.train.optimizer, groups, steps)
    learner.train()
    size = recipe.train.batch_size // recipe.train.accumulate
    batches = [plan_batch(recipe, data, model, size).to(device) for _ in range(recipe.train.accumulate)]
    for _ in range(steps):
        for batch in batches:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = learner(batch)["loss"]
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM") - before


def _resident(key: str) -> int:
    """VmRSS (now) or VmHWM (at the peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measured(name: str, base: Path, device: str, environment: dict[str, str]) -> int:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--base", str(base), "--device", device]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def compare(name: str, base: Path, device: str, default_malloc: bool = True) -> dict[str, Any]:
    """Planned and measured megabytes of one case, without the libraries; and with the default malloc."""
    plan = make_plan(recipe_of(name, base), device=device)
    planned = plan.total - plan.memory["runtime"]
    used = planned - plan.memory["allocator"]
    row = {"case": name, "planned_mb": used / 1e6, **{f"{k}_mb": v / 1e6 for k, v in plan.memory.items()}}
    row["measured_mb"] = measured(name, base, device, RETURNING) / 1e6
    row["ratio"] = row["planned_mb"] / row["measured_mb"]
    if device == "cpu" and default_malloc:
        row["planned_default_mb"] = planned / 1e6
        row["measured_default_mb"] = measured(name, base, device, {}) / 1e6
        row["ratio_default"] = row["planned_default_mb"] / row["measured_default_mb"]
    return row


def _sizes(row: dict[str, Any], kind: str) -> str:
    if f"ratio{kind}" not in row:
        return ""
    planned, got = row[f"planned{kind}_mb"], row[f"measured{kind}_mb"]
    return f" {planned:7.0f} /{got:7.0f} MB = {row[f'ratio{kind}']:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two cases, a smaller model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", action="append", choices=CASES, help="some cases")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(recipe_of(arguments.measure, arguments.base), arguments.device))
        return
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder), *((512, 4) if arguments.quick else (768, 6)))
        rows = []
        print(f"{'planned / measured':26s} {'freed blocks returned':>27s} {'default malloc':>27s}")
        for name in arguments.only or (QUICK if arguments.quick else CASES):
            row = compare(name, base, arguments.device, default_malloc=not arguments.quick)
            rows.append(row)
            print(f"{name:26s}{_sizes(row, '')}{_sizes(row, '_default')}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": arguments.device, "cases": rows}, indent=1))


if __name__ == "__main__":
    main()
