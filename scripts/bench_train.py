"""Samples per second of a LoRA training step, against OpenVLA's own script, and what each saving is worth.

The recipe is that of OpenVLA's `finetune.py`: LoRA r=32 on all linear layers, towers included, one action
of seven tokens. "baseline" is that script's step: Hugging Face forward with labels (logits at all
positions, an attention mask for padding), PEFT's own layers, plain AdamW, accuracy and L1 from the logits.
"ours" is the step of `training.loop` on the same weights, adapters and batch; losses and gradients of both
are compared. Each saving is switched off alone. Beside them: the towers' last blocks, which the original
runs for nothing; our parallel head with eight steps; checkpointing; with --compile compiled blocks. On a GPU
also compiled blocks with the towers replayed (`train.compile`, `train.cuda_graphs`). Loading is left out.

Steps take turns; numbers are medians, on a CPU of processor time. Peak memory is of a process of its own
per variant, over what it had before the model; on a GPU PyTorch's. MFU is the arithmetic that a step cannot
do without (`training.flop_count`) per second, over the best rate of a large product in the same turns.

    python scripts/bench_train.py [--quick] [--json FILE] [--device cpu|cuda] [--compile] [--processes N]

With --processes N only baseline and ours, on N processes under torch's DDP (gloo, or NCCL and a GPU each):
there `finetune.py` wraps the model with find_unused_parameters and gradients as views of buckets.

Beside torch, transformers, peft and accelerate it needs pydantic, jaxtyping and Pillow.
On a GPU the model has OpenVLA-7B's shape and random bf16 weights made there, and batches grow until memory
ends.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch._dynamo
from compared_steps import RANK, SLOTS, Bench, Size, batch_of, sizes
from step_clocks import Peak, clock, resident
from step_savings import LESS, NAMES, QUICK, checkpointing, difference, variants
from steps_in_ranks import in_ranks, measure_rank, show_ranks

from vla_adapt.training.compiled import compiled_blocks
from vla_adapt.training.flop_count import StepSizes, step_flops
from vla_adapt.training.replayed_towers import ReplayedTowers

RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(size: Size, device: str, names: Sequence[str], compiled: bool) -> dict[str, Any]:
    """Seconds of every variant in turns, and what follows from them."""
    bench, peak = Bench(size, device), Peak(device)
    steps = {name: variant for name, variant in variants(bench).items() if name in names}
    if compiled:
        steps["compiled blocks"] = (bench.ours, partial(compiled_blocks, bench.model))
    differs, seconds, rates = difference(bench), {name: [] for name in steps}, []
    memory: dict[str, float] = {}
    for turn in range(size.turns + 1):
        rates.append(peak.rate())
        for name, (step, around) in list(steps.items()):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with around():
                taken = fitting(bench, step)
            if taken is None:
                print(f"{name}: out of memory at batch {size.samples}")
                del steps[name], seconds[name]
                continue
            if turn:  # the first turn warms up, and compiles
                seconds[name].append(taken)
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 1e6
    middle = {name: median(taken) for name, taken in seconds.items()}
    flops = {
        name: sum(step_flops(bench.model.config, work).values()) for name, work in work_of(bench).items()
    }
    tokens = float(bench.labels[1].sum()) + size.samples * bench.model.num_patches
    return {
        "model": size.name, "samples": size.samples, "seconds": middle, "difference": differs,
        "samples_per_s": {name: size.samples / taken for name, taken in middle.items()},
        "tokens_per_s": {name: tokens / middle[name] for name in ("baseline", "ours")},
        "flops": flops, "peak_flops_per_s": max(rates),
        "mfu": {name: flops[name] / middle[name] / max(rates) for name in flops},
        "speedup": {name: median(a / b for a, b in zip(seconds["baseline"], taken, strict=True))
                    for name, taken in seconds.items()},
        "peak_memory_mb": memory,
    }  # fmt: skip


def fitting(bench: Bench, step: Callable[[], Any]) -> float | None:
    """Seconds of a step, or None if a GPU's memory ends."""
    try:
        return clock(bench.device, step)
    except torch.cuda.OutOfMemoryError:
        pass  # what it made goes with the error
    bench.model.zero_grad(set_to_none=True)
    free_memory()
    return None


def free_memory() -> None:
    """Give a GPU back what nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def compiled_run(size: Size, activation_budget: float) -> dict[str, Any]:
    """On a GPU: the step of a run of one process with `train.compile`, with nothing else beside it."""
    free_memory()
    torch._dynamo.reset()
    bench = Bench(size, "cuda")
    compiled = compiled_blocks(bench.model, activation_budget=activation_budget)
    with compiled, ReplayedTowers(bench.model).used():
        first = clock("cuda", bench.ours)
        bench.ours()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        taken = median(clock("cuda", bench.ours) for _ in range(7))
    # Of what the driver gave: what a recording reuses is not "allocated".
    memory = torch.cuda.max_memory_reserved() / 1e6
    return {
        "activation_budget": activation_budget, "first_s": first, "seconds": taken,
        "samples_per_s": size.samples / taken, "peak_memory_mb": memory,
    }  # fmt: skip


def work_of(bench: Bench) -> dict[str, StepSizes]:
    """What the steps compute: ours, and the baseline, which has one more position and all logits."""
    samples, text = bench.batches["tokens"].input_ids.shape
    every = samples * (text + SLOTS + 1 + bench.model.num_patches)
    folded = bench.model.dtype == torch.float32
    return {
        "ours": StepSizes(samples, text + SLOTS, RANK, samples * (SLOTS + 1), read=SLOTS + 1, folded=folded),
        "baseline": StepSizes(samples, text + SLOTS + 1, RANK, every),
    }


def growing_batches(size: Size) -> list[dict[str, Any]]:
    """On a GPU: batches of 1 to 64, with and without checkpointing, until memory ends."""
    rows = []
    bench = Bench(size, "cuda", 1)
    ways = {"none": nullcontext, "towers": partial(checkpointing, bench.model, towers_only=True)}
    ways["all"] = partial(checkpointing, bench.model)
    for name, around in ways.items():
        for samples in (1, 2, 4, 8, 16, 32, 64):
            bench.batches["tokens"] = batch_of(bench.model, samples, 1).to("cuda")
            row = {"samples": samples, "checkpointing": name}
            torch.cuda.empty_cache()
            with around():
                if fitting(bench, bench.ours) is None:
                    rows.append({**row, "samples_per_s": None})
                    break
                torch.cuda.reset_peak_memory_stats()
                taken = median(clock("cuda", bench.ours) for _ in range(2))
            peak = torch.cuda.max_memory_allocated() / 1e6
            rows.append({**row, "samples_per_s": samples / taken, "peak_memory_mb": peak})
    return rows


def smallest_memory(size: Size, rows: list[dict[str, Any]]) -> float:
    """Megabytes of a GPU that a batch of one needs with checkpointing, found by giving it less and less."""
    bench = Bench(size, "cuda", 1)
    total = torch.cuda.get_device_properties(0).total_memory / 1e6
    low = next(row["peak_memory_mb"] for row in rows if row["samples"] == 1 and row["checkpointing"] == "all")
    high = min(1.25 * low, total)
    for _ in range(6):
        tried = (low + high) / 2
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(tried / total)
        with checkpointing(bench.model):
            fits = fitting(bench, bench.ours) is not None
        low, high = (low, tried) if fits else (tried, high)
    return high


def peak_memory(size: Size, name: str) -> int:
    """Of three steps on a CPU, bytes over what was there before."""
    before = resident("VmRSS")
    step, around = variants(Bench(size, "cpu"))[name]
    for _ in range(3):
        with around():
            step()
    return resident("VmHWM") - before


def peak_memory_elsewhere(size: Size, name: str) -> float:
    """`peak_memory` in a process of its own whose malloc returns freed blocks, MB."""
    command = [sys.executable, __file__, "--measure", size.name, name]
    done = subprocess.run(command, env=os.environ | RETURNING, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few variants and turns: within 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also compiled blocks: minutes on a CPU")
    parser.add_argument("--processes", type=int, default=1, help="baseline and ours under DDP")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    if arguments.measure:
        size = next(size for size in sizes(device, quick=False) if size.name == arguments.measure[0])
        print(peak_memory(size, arguments.measure[1]))
        return
    if arguments.processes > 1 and "RANK" in os.environ:
        print(json.dumps(measure_rank(sizes(device, arguments.quick)[0], device)))
        return
    if arguments.processes > 1:
        report = in_ranks([sys.executable, *sys.argv, "--device", device], arguments.processes)
        show_ranks(report)
    else:
        report = compare(device, arguments.quick, arguments.compile)
    report["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread"
    report["torch"] = torch.__version__
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def compare(device: str, quick: bool, compiled: bool) -> dict[str, Any]:
    """All that is measured on one process, shown as it comes."""
    every, rows = sizes(device, quick), []
    for number, size in enumerate(every):
        names = QUICK if quick else NAMES
        row = measure(size, device, names, compiled and device == "cpu")
        if device == "cpu" and number == 0:
            few = [name for name in names if not quick or name in ("baseline", "ours")]
            row["peak_memory_mb"] = {name: peak_memory_elsewhere(size, name) for name in few}
        rows.append(row)
        show(row)
        gc.collect()
    report = {
        "speedup_vs_baseline": rows[0]["speedup"]["ours"],
        "mfu": rows[0]["mfu"]["ours"],
        "peak_memory_mb": rows[0]["peak_memory_mb"]["ours"],
        "models": rows,
    }
    if device == "cuda" and not quick:
        report |= on_a_gpu(every[0], rows[0])
    return report


def on_a_gpu(size: Size, row: dict[str, Any]) -> dict[str, Any]:
    """What is measured with one model at a time, shown as it comes; `row` was measured before."""
    found: dict[str, Any] = {"compiled": []}
    for budget in (1.0, 0.7):
        run = compiled_run(size, budget)
        run["speedup"] = row["seconds"]["baseline"] / run["seconds"]
        run["mfu"] = row["flops"]["ours"] / run["seconds"] / row["peak_flops_per_s"]
        found["compiled"].append(run)
        print("compiled, towers replayed: " + ", ".join(f"{key} {value:.4g}" for key, value in run.items()))
    free_memory()
    found["batches"] = growing_batches(size)
    alone = [e for e in found["batches"] if e["samples"] == size.samples and e["checkpointing"] == "none"]
    # There no other AdamW lies beside it.
    found["peak_memory_mb"] = alone[0].get("peak_memory_mb") if alone else None
    print(f"{'checkpointing':>14s}{'samples':>9s}{'samples/s':>11s}{'peak MB':>9s}")
    for each in found["batches"]:
        rate, memory = each["samples_per_s"], each.get("peak_memory_mb")
        said = "  out of memory" if rate is None else f"{rate:11.1f}{memory:9.0f}"
        print(f"{each['checkpointing']:>14s}{each['samples']:9d}{said}")
    free_memory()
    found["smallest_memory_mb"] = smallest_memory(size, found["batches"])
    print(f"smallest memory for one sample: {found['smallest_memory_mb']:.0f} MB")
    return found


def show(row: dict[str, Any]) -> None:
    """The table of one model."""
    print(f"\n{row['model']}, LoRA r={RANK} on all linear layers, batch {row['samples']}")
    print(f"{'':38s}{'ms':>8s}{'samples/s':>11s}{'/ baseline':>12s}{'peak MB':>9s}")
    for name, taken in row["seconds"].items():
        label = name if name in ("baseline", "ours") or name not in LESS else f"ours, {name}"
        memory = row["peak_memory_mb"].get(name)
        print(
            f"{label:38s}{1e3 * taken:8.1f}{row['samples_per_s'][name]:11.1f}{row['speedup'][name]:11.2f}x"
            f"{'' if memory is None else f'{memory:9.0f}'}"
        )
    for name in ("baseline", "ours"):
        print(
            f"{name}: {row['tokens_per_s'][name]:.0f} tokens/s, {row['flops'][name] / 1e9:.1f} GFLOP a step, "
            f"MFU {100 * row['mfu'][name]:.0f} % of {row['peak_flops_per_s'] / 1e9:.0f} GFLOP/s"
        )
    print(
        "baseline and ours differ by {loss:.1e} in loss, {gradient:.1e} in gradient".format(
            **row["difference"]
        )
    )


if __name__ == "__main__":
    main()
