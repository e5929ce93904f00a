"""Time of a training step over one batch that mixes robots, each row through its own LoRA adapter.

Forward, backward and AdamW of OpenVLA with random weights, LoRA of rank 16 on all linear layers, against
the same batch (a) as one sub-batch per robot, each with its own adapter active in plain PEFT, gradients
summed, and (b) through one plain PEFT adapter. The floor is the same pass without any adapter. On the CPU:
processor time of one thread, for the tiny twin and for a model of ordinary layer widths; on a GPU: wall time,
for layers of the 7B model in bfloat16. Variants take turns; ratios are medians over turns.

A second table compares, for one layer, the two ways of the low-rank product (see adaptation/low_rank.py).

    python scripts/bench_routed.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vla_adapt.adaptation.low_rank import Block, Pair, add_low_rank, dense_is_cheaper
from vla_adapt.adaptation.method import Lora, SharedLora, activate
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_config
from vla_adapt.training.optimizer import OptimizerConfig, make_optimizer

RANK, TEXT = 16, 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Size:
    """A model of layer widths to measure, and the batch it gets."""

    name: str
    samples: int
    turns: int
    text: dict[str, int]
    tower: dict[str, int]
    image: int = 84

    def config(self) -> OpenVLAConfig:
        raw = tiny_config().raw
        raw["image_sizes"] = [self.image, self.image]
        raw["vision_towers"] = [
            {**raw["vision_towers"][0], **self.tower, "mlp_width": 4 * self.tower["width"]},
            {**raw["vision_towers"][1], **self.tower, "mlp_width": 4 * self.tower["width"]},
        ]
        raw["text_config"] |= self.text
        return OpenVLAConfig(raw)


def sizes(quick: bool) -> list[Size]:
    """What is measured here; the last one gives the headline numbers."""
    if DEVICE == "cuda":
        layers = {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4,
            "num_attention_heads": 32, "num_key_value_heads": 32,
        }  # fmt: skip
        tower = {"width": 1024, "depth": 4, "heads": 16}
        return [Size("7B layers", 16, 5 if quick else 20, layers, tower, image=224)]
    wide = {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 2,
        "num_attention_heads": 12, "num_key_value_heads": 12,
    }  # fmt: skip
    return [
        Size("tiny twin", 32, 4 if quick else 9, {}, {"width": 64, "depth": 3, "heads": 4}),
        Size("width 768", 16, 3 if quick else 5, wide, {"width": 256, "depth": 3, "heads": 4}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: ends within 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    rows = []
    for size in sizes(arguments.quick):
        for robots in (4, 8):
            for shared in (False,) if arguments.quick else (False, True):
                rows.append(measure(size, robots, shared))
                console.print(f"{size.name}, {robots} robots{', shared' if shared else ''}: done")
    layers = [] if arguments.quick else [measure_layer(*shape) for shape in layer_shapes()]
    headline = [row for row in rows if row["model"] == rows[-1]["model"] and not row["shared"]]
    report = {
        "ratio_to_single_adapter": max(row["ratio_to_single_adapter"] for row in headline),
        "ratio_to_per_robot_batches": max(row["ratio_to_per_robot_batches"] for row in headline),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, 1 thread",
        "torch": torch.__version__,
        "steps": rows,
        "layers": layers,
    }
    show(console, report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


# --- a training step ----------------------------------------------------------------------------------------


def measure(size: Size, robots: int, shared: bool) -> dict[str, Any]:
    """Seconds of a step in every variant, and the ratios of issue 4."""
    names = [f"robot{number}" for number in range(robots)]
    model = make_model(size, names, shared)
    optimizer, _ = make_optimizer(
        OptimizerConfig(), {"all": [p for p in model.parameters() if p.requires_grad]}, steps=10**6
    )
    steps = variants(model, names, make_batch(model, size))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(size.turns + 1):
        for name, step in steps.items():
            taken = clock(lambda step=step: one_step(step, optimizer))
            if turn:  # the first turn warms up
                seconds[name].append(taken)
    return {
        "model": size.name,
        "robots": robots,
        "shared": shared,
        "samples": size.samples,
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "ratio_to_single_adapter": ratio(seconds["routed"], seconds["single_adapter"]),
        "ratio_to_per_robot_batches": ratio(seconds["routed"], seconds["per_robot_batches"]),
        "ratio_to_base_only": ratio(seconds["routed"], seconds["base_only"]),
    }


def variants(
    model: OpenVLA, names: list[str], batch: tuple[Tensor, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Name -> what gives a step's loss. The base alone trains its positions: it wants a backward pass too."""
    ids, pixels = batch
    rows = [name for name in names for _ in range(len(ids) // len(names))]

    def run(part: slice = slice(None)) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            return model.encode(ids[part], None, pixels[part]).float().square().sum()

    def routed() -> Tensor:
        with route(model, rows):
            return run()

    def per_robot_batches() -> Tensor:
        total = torch.zeros((), device=ids.device)
        for name in names:
            activate(model, name)
            total = total + run(slice(rows.index(name), rows.index(name) + rows.count(name)))
        return total

    def with_active(name: str | None) -> Tensor:
        activate(model, name)
        return run()

    return {
        "routed": routed,
        "per_robot_batches": per_robot_batches,
        "single_adapter": lambda: with_active(names[0]),
        "base_only": lambda: with_active(None),
    }


def one_step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    loss().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_model(size: Size, names: list[str], shared: bool) -> OpenVLA:
    torch.manual_seed(0)
    model = OpenVLA(size.config()).to(DEVICE, torch.bfloat16 if DEVICE == "cuda" else torch.float32)
    own = SharedLora(rank=RANK) if shared else None
    Lora(rank=RANK, targets="all_linear", shared=own).prepare(model, names)
    towers = model.vision_backbone
    towers.featurizer.embeddings.position_embeddings.requires_grad_(True)
    towers.fused_featurizer.embeddings.position_embedding.weight.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.01)
    return model.train()


def make_batch(model: OpenVLA, size: Size) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, 200, (size.samples, TEXT), device=DEVICE)
    return ids, torch.randn(size.samples, 6, size.image, size.image, device=DEVICE, dtype=model.dtype)


# --- one layer ----------------------------------------------------------------------------------------------


def layer_shapes() -> list[tuple[int, int, int, int]]:
    """Rows, width in, width out, robots: of decoding and of training."""
    if DEVICE == "cuda":
        widths = [(4096, 4096), (4096, 11008), (11008, 4096), (1024, 4096)]
        return [(rows, *width, robots) for robots in (4, 8) for rows in (8, 4608) for width in widths]
    shapes = [(8, 128, 128), (8, 1024, 1024), (1600, 128, 128), (1600, 128, 512), (896, 768, 768)]
    return [(*shape, robots) for robots in (4, 8) for shape in shapes]


def measure_layer(rows: int, width_in: int, width_out: int, robots: int) -> dict[str, Any]:
    """Seconds of the adapters' part of one layer, forward and backward, both ways."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    x = torch.randn(rows, width_in, device=DEVICE, dtype=dtype, requires_grad=True)
    pairs = [
        Pair(nn.Parameter(torch.randn(RANK, width_in, device=DEVICE, dtype=dtype)),
             nn.Parameter(torch.randn(width_out, RANK, device=DEVICE, dtype=dtype)), 2.0)
        for _ in range(robots)
    ]  # fmt: skip
    share = rows // robots
    blocks = [Block(number * share, (number + 1) * share, number) for number in range(robots)]
    upstream = torch.randn(rows, width_out, device=DEVICE, dtype=dtype)
    masks: dict[Any, Tensor] = {}

    def once(dense: bool) -> None:
        add_low_rank(torch.zeros_like(upstream), x, blocks, pairs, dense, masks).backward(upstream)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(15):
        for dense, taken in seconds.items():
            taken.append(clock(lambda dense=dense: once(dense)))
    return {
        "rows": rows, "width_in": width_in, "width_out": width_out, "robots": robots,
        "segments_ms": 1e3 * median(seconds[False]), "dense_ms": 1e3 * median(seconds[True]),
        "chosen": "dense" if dense_is_cheaper(rows, robots, pairs) else "segments",
    }  # fmt: skip


# --- clock and tables ---------------------------------------------------------------------------------------


def clock(work: Callable[[], None]) -> float:
    """Seconds: of the GPU's clock on the wall, or of this process on the CPU, whoever else is busy."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(mine: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(mine, theirs, strict=True))


def show(console: Console, report: dict[str, Any]) -> None:
    columns = ("routed", "per_robot_batches", "single_adapter", "base_only")
    table = Table(title=f"training step, ms ({report['device']})")
    for name in ("model", "robots", *columns, "/ per robot (a)", "/ single (b)", "/ base"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in report["steps"]:
        ratios = (row[f"ratio_to_{name}"] for name in columns[1:])
        table.add_row(
            row["model"] + (", shared" if row["shared"] else ""), str(row["robots"]),
            *(f"{1e3 * row['seconds'][name]:.1f}" for name in columns), *(f"{value:.3f}" for value in ratios),
        )  # fmt: skip
    console.print(table)
    if report["layers"]:
        layers = Table(title="adapters of one layer, ms")
        for name in report["layers"][0]:
            layers.add_column(name.replace("_", " "), justify="right")
        for row in report["layers"]:
            layers.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(layers)


if __name__ == "__main__":
    main()
