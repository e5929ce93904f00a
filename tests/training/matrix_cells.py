"""What the ranks of `test_parallelism` run: the loop's own steps for every cell that is not refused.

Not a test: each launch imports it and calls `instead`, which takes the place of the run's inside.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.launch import start_accelerator
from vla_adapt.training.parallelism import DDP, FSDP2, ONE, PRECISIONS, refusal
from vla_adapt.training.resume import CheckpointKeeper
from vla_adapt.training.setting import prepare

STAGES = [
    {"from_step": 0, "train": ["head", "projector"]},
    {"from_step": 1, "train": ["head", {"last_n": 1}]},
]
FOUR_BITS = find_spec("bitsandbytes") is not None
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 3, "targets": "all_linear"},
    "lora + shared": {"kind": "lora", "rank": 2, "shared": {"rank": 3}},
    "qlora": {"kind": "qlora", "rank": 2},
    "frozen": {"kind": "frozen"},
    "last_n": {"kind": "last_n", "layers": 1},
    "staged": {"kind": "staged", "stages": STAGES},
    "full": {"kind": "full"},
}


def run_cells(run: loop.Run, recipe: Recipe, fresh: bool) -> None:
    """Instead of `loop._train`."""
    del fresh
    ways = (ONE,) if run.ranks.world == 1 else (DDP, FSDP2)
    for precision in PRECISIONS:
        AcceleratorState._reset_state()
        run = replace(run, accelerator=start_accelerator(precision))
        for method, adaptation in METHODS.items():
            for way in ways:
                folder = run.folder / f"{method} {way} {precision}"
                tree = recipe.model_dump(mode="json") | {"adaptation": adaptation, "output": str(folder)}
                tree["train"]["precision"] = precision
                if refusal(method, way, precision) is None and (method != "qlora" or FOUR_BITS):
                    run_cell(replace(run, folder=folder, way=way), Recipe.model_validate(tree))


def run_cell(run: loop.Run, recipe: Recipe) -> None:
    """Two steps."""
    Path(recipe.output).mkdir(parents=True, exist_ok=True)
    run.ranks.wait()
    setting = prepare(recipe)
    loop._run_steps(replace(run, keeper=CheckpointKeeper(run.ranks, run.folder, recipe)), setting)


def instead(rank: int) -> None:
    del rank
    loop._train = run_cells
