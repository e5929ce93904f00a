"""The verb `vla-adapt train`: run a recipe in this process, or plan it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vla_adapt.cli_data import console


def train(
    recipe: Annotated[str, typer.Argument(help="recipe file, or the name of a built-in one")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=c: override a key")] = None,
    fresh: Annotated[bool, typer.Option(help="forget an earlier, unfinished run in the same folder")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="say what the run takes, and do not run it")] = False,
    memory: Annotated[
        str | None, typer.Option(help="with --plan: per process, e.g. 24GB; default: this machine's")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="with --plan: that share the batch; default: those of --launch, or 1"),
    ] = None,
    launch: Annotated[
        Path | None, typer.Option(help="with --plan: launch config that the run will have: DDP or FSDP2")
    ] = None,
    device: Annotated[
        str, typer.Option(help="with --plan: cpu or cuda; auto: a GPU if there is one")
    ] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="with --plan: write it there, too")] = None,
) -> None:
    """Train the recipe in one process (several: accelerate launch scripts/finetune.py), or plan it.

    A plan needs neither weights nor data, and ends with exit code 2 when the run does not fit.

    Examples: vla-adapt train --plan openvla_7b_lora --memory 80GB --set train.batch_size=8
    vla-adapt train --plan openvla_7b_lora --device cuda --memory 24GB --launch recipes/launch/fsdp.yaml
    """
    from vla_adapt.recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if plan:
        _plan(loaded, memory, processes, launch, device, json_file)
        return
    if any(option is not None for option in (memory, processes, launch, json_file)) or device != "auto":
        raise ValueError(
            "--memory, --processes, --launch, --device and --json go with --plan; several processes run by "
            "`accelerate launch scripts/finetune.py`"
        )
    from vla_adapt.training.loop import train as run
    from vla_adapt.training.stop_signal import Stopped

    try:
        run(loaded, fresh=fresh)
    except Stopped as stopped:
        print(f"vla-adapt: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signal) from None


def _plan(
    recipe: Any,
    memory: str | None,
    processes: int | None,
    launch: Path | None,
    device: str,
    json_file: Path | None,
) -> None:
    import torch

    from vla_adapt.training.launch_file import Layout, read_layout
    from vla_adapt.training.plan import make_plan
    from vla_adapt.training.plan_fit import machine_memory, parse_bytes, way_out

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: got '{device}', wanted auto, cpu or cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if memory is None and device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU here: say with --memory how much memory yours has")
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise ValueError(f"--json {json_file}: wanted a file in a folder that is there")
    layout = Layout.of(processes or 1) if launch is None else read_layout(launch, processes)
    limit = machine_memory(device, layout.per_machine) if memory is None else parse_bytes(memory)
    made = make_plan(recipe, layout, device)
    _print(recipe, made, limit)
    if json_file is not None:
        fits = made.device_total <= limit
        content = {**asdict(made), "total": made.total, "device_total": made.device_total, "limit": limit}
        json_file.write_text(json.dumps(content | {"fits": fits}, indent=1) + "\n")
    if made.device_total > limit:
        print("it does not fit; planning what would ...")
        planner = lambda changed: make_plan(changed, layout, device)  # noqa: E731
        raise ValueError(way_out(recipe, made, limit, planner))


def _print(recipe: Any, plan: Any, limit: int) -> None:
    from vla_adapt.training.plan_fit import gigabytes

    trained = sum(plan.trained.values())
    table = Table("robot", "parameters that train", "weights of its bundle", title=f"plan of {recipe.name}")
    for name in dict.fromkeys([*plan.trained, *plan.adapter_bytes]):
        size = plan.adapter_bytes.get(name)
        table.add_row(name, f"{plan.trained.get(name, 0):,}", "" if size is None else gigabytes(size))
    table.add_row("all", f"{trained:,} of {trained + plan.frozen:,}", "")
    console.print(table)
    table = Table("memory of one process", "", title=f"{plan.samples} samples at once on the {plan.device}")
    for name, size in plan.memory.items():
        where = " (host)" if plan.device == "cuda" and name == "batches" else ""
        table.add_row(name + where, gigabytes(size))
    table.add_row("sum", gigabytes(plan.total))
    console.print(table)
    samples = recipe.train.batch_size
    print(
        f"step: {samples} samples of {plan.tokens} tokens, {plan.flops / 1e12:.3g} TFLOP "
        f"({plan.processes} process(es){f' ({plan.way})' if plan.processes > 1 else ''}, "
        f"{plan.passes} pass(es) each)"
    )
    if plan.epoch_samples is not None:
        epochs = recipe.train.steps * samples / plan.epoch_samples
        tokens = plan.epoch_samples * plan.tokens
        print(f"epoch: {plan.epoch_samples:,} samples, {tokens:,} tokens; the run is {epochs:.3g} of them")
    for note in plan.notes:
        print(f"note: {note}")
    verdict = "fits" if plan.device_total <= limit else "does not fit"
    print(f"{gigabytes(plan.device_total)} of {gigabytes(limit)}: {verdict}")
