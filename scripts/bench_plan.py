"""Planned against measured memory of training steps, each measured in a process of its own.

scripts/bench_plan.py [--quick] [--json FILE] [--device cpu|cuda]

On a CPU: the peak of resident memory over what the process had before, with a malloc that returns freed
blocks (all that the plan counts but "allocator"), and with glibc's default. On a GPU: PyTorch's peak. Of
several processes (DDP, FSDP2; gloo on a CPU) that of the largest; what they hold before the first step, when
the model was whole in each of them, does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rank_processes import outputs_of_ranks
from step_clocks import resident

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training.launch import launched_way, start_accelerator
from vla_adapt.training.launch_file import Layout
from vla_adapt.training.optimizer import make_optimizer
from vla_adapt.training.parallelism import FSDP2
from vla_adapt.training.plan import WHOLE_AT_THE_END, make_plan
from vla_adapt.training.plan_data import look_at_data, plan_batch
from vla_adapt.training.setting import make_learner
from vla_adapt.training.spread import spread_over

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
    "lora, 2 processes": (1, PARALLEL, LORA, {"batch_size": 4}),
    "lora, 2 shards": (1, PARALLEL, LORA, {"batch_size": 4}),
    "lora, 2 shards kept": (1, PARALLEL, LORA, {"batch_size": 4}),
    "full, 2 shards": (1, PARALLEL, {"kind": "full"}, {"batch_size": 4}),
}
LAYOUTS = {
    "lora, 2 processes": Layout.of(2),
    "lora, 2 shards": Layout(2, FSDP2),
    "lora, 2 shards kept": Layout(2, FSDP2, gather_twice=False),
    "full, 2 shards": Layout(2, FSDP2),
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


def measure(recipe: Recipe, steps: int = 2) -> int:
    """Bytes at the peak of real steps on random weights, over what was there before, of this process."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    torch.set_num_threads(1)
    accelerator = start_accelerator(recipe.train.precision)
    device, world = accelerator.device, accelerator.num_processes
    before = resident("VmRSS")
    with torch.device("meta"):
        model = OpenVLA.without_weights(Path(recipe.base), dtype=dtype)
        data = look_at_data(recipe, model.source)
        learner = make_learner(recipe, model, list(data.masks), [])
    way = launched_way(world)
    learner.to_empty(device="cpu" if way == FSDP2 else device)
    model.restore_buffers("cpu" if way == FSDP2 else device)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(std=0.02)
    spread = spread_over(accelerator, way, learner)
    optimizer, _ = make_optimizer(recipe.train.optimizer, spread.groups, steps)
    wrapped, optimizer = spread.prepare(optimizer)
    wrapped.train()
    size = recipe.train.batch_size // (recipe.train.accumulate * world)
    batches = [plan_batch(recipe, data, model, size).to(device) for _ in range(recipe.train.accumulate)]
    _forget_peak(device)
    for _ in range(steps):
        for number, batch in enumerate(batches, start=1):
            with spread.passing(number == len(batches)):
                with accelerator.autocast():
                    loss = wrapped(batch, 0.0)["loss"]
                accelerator.backward(loss)
                del loss
        spread.settle(set(batches[0].robots), recipe.train.optimizer.clip_norm)
        optimizer.step()
        spread.clear(optimizer)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measured(name: str, base: Path, device: str, environment: dict[str, str]) -> int:
    """`measure` in processes of its own; of several the largest."""
    command = [sys.executable, __file__, "--measure", name, "--base", str(base)]
    layout = LAYOUTS.get(name, Layout())
    shared = environment | {"ACCELERATE_USE_CPU": str(device == "cpu").lower()}
    if layout.way == FSDP2:
        shared |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        shared |= {"FSDP_RESHARD_AFTER_FORWARD": str(layout.gather_twice).lower()}
    printed = outputs_of_ranks(command, layout.processes, shared)
    return max(int(text.split()[-1]) for text in printed)


def compare(name: str, base: Path, device: str, default_malloc: bool = True) -> dict[str, Any]:
    """Planned and measured megabytes of one case, without the libraries; and with the default malloc."""
    plan = make_plan(recipe_of(name, base), LAYOUTS.get(name), device)
    planned = plan.total - plan.memory["runtime"] - plan.memory.get(WHOLE_AT_THE_END, 0)  # steps only
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
        print(measure(recipe_of(arguments.measure, arguments.base)))
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
