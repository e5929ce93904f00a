"""The `vla-adapt` command.

Imports happen inside the verbs, the one place where that is allowed beside heavy optional libraries:
`vla-adapt robots` must answer at once and without PyTorch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from vla_adapt.cli_adapters import Base, Dtype, adapters_app, open_base
from vla_adapt.cli_data import console, data_app
from vla_adapt.cli_train import train
from vla_adapt.progress_bar import Bar, progress_bar

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt OpenVLA to your robots; serve them all.",
)


# Modules that verbs import and a plain installation lacks, with the extra that brings them.
_EXTRAS = {"uvicorn": "serve", "starlette": "serve"}
# What `evaluate` reads in two of its modes.
_CLOSED_LOOP = (
    "url", "robot", "episodes", "seed", "execute", "workers", "label", "token_file", "out", "append",
)  # fmt: skip
_PROBE = ("run", "windows", "folds", "device")


class ListByDefault(TyperGroup):
    """A group of verbs that stands for its `list` when none is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["list"])


robots_app = typer.Typer(cls=ListByDefault, help="The embodiments. Example: vla-adapt robots show ur5e")
sim_app = typer.Typer(
    no_args_is_help=True, help="Simulated robots. Example: vla-adapt sim record ur5e --out data"
)
app.add_typer(robots_app, name="robots")
app.add_typer(data_app, name="data")
app.add_typer(adapters_app, name="adapters")
app.add_typer(sim_app, name="sim")
app.command()(train)


def main() -> None:
    """Run the command; mistakes of use end in one line and exit code 2, not in a traceback."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        print(
            f"vla-adapt: {error.name} is not installed; pip install 'vla_adapt[{_EXTRAS[error.name]}]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except (ValueError, OSError) as error:
        print(f"vla-adapt: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@robots_app.command("list")
def robots_list() -> None:
    """List the embodiments; `vla-adapt robots` does the same. Example: vla-adapt robots list"""
    from vla_adapt.embodiment import Embodiment

    table = Table("name", "title", "action", "rate", "cameras")
    for name in Embodiment.available():
        robot = Embodiment.load(name)
        table.add_row(
            name, robot.title, str(robot.action_dim), f"{robot.rate_hz:g} Hz", ", ".join(robot.cameras)
        )
    console.print(table)


@robots_app.command("show")
def robots_show(name: Annotated[str, typer.Argument(help="name or YAML file")]) -> None:
    """Print one embodiment with its slot map. Example: vla-adapt robots show bimanual_panda"""
    from vla_adapt.actions.space import describe
    from vla_adapt.embodiment import Embodiment

    robot = Embodiment.load(name)
    console.print(
        f"[bold]{robot.name}[/bold]: {robot.title}, {robot.rate_hz:g} Hz, cameras {', '.join(robot.cameras)}"
    )
    rows = describe(robot)
    table = Table(*(field.replace("_", " ") for field in rows[0]._fields), title="unified slots of an action")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    console.print(table)


@app.command()
def serve(
    adapters: Annotated[Path, typer.Option(help="folder of bundles")],
    base: Base = "tiny",
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Annotated[Path | None, typer.Option(help="file holding the token clients must send")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="written with the server's URL once it listens")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of the model; 0 leaves PyTorch's default")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU when there is one")] = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Serve every robot from one resident base. Example: vla-adapt serve --adapters runs/x/bundles"""
    import torch

    from vla_adapt.adaptation.bank import Bank
    from vla_adapt.serving.access import read_token
    from vla_adapt.serving.server import serve as run_server

    if threads:
        torch.set_num_threads(threads)
    token = read_token(token_file) if token_file else None
    bank = Bank.open(open_base(base, dtype, device), adapters, progress=print)

    run_server(bank, host, port, token=token, ready_file=ready_file)


@app.command()
def evaluate(
    closed_loop: Annotated[
        bool, typer.Option("--closed-loop", help="drive simulated robots through a server")
    ] = False,
    url: Annotated[str, typer.Option(help="server to drive")] = "http://127.0.0.1:8000",
    robot: Annotated[
        list[str] | None, typer.Option(help="robots to drive (repeatable); default: all served")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="per robot")] = 20,
    seed: Annotated[int, typer.Option(help="first episode seed; evaluation seeds start at 9001")] = 9001,
    execute: Annotated[int, typer.Option(min=1, help="actions executed of each chunk")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="simulators at a time")] = 2,
    label: Annotated[str, typer.Option(help="what the results are called in a report")] = "",
    token_file: Annotated[Path | None, typer.Option(help="file holding the server's token")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON of the results; camera strips go beside it")] = None,
    append: Annotated[bool, typer.Option("--append", help="add to OUT instead of replacing it")] = False,
    run: Annotated[Path | None, typer.Option(help="a run folder; alone: prints its held-out table")] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="with --run: can the robot be told from the policy's features?")
    ] = False,
    windows: Annotated[int, typer.Option(min=1, help="probe: windows per robot")] = 200,
    folds: Annotated[int, typer.Option(min=2, help="probe: of the cross-validation by episode")] = 5,
    device: Annotated[str, typer.Option(help="probe: cpu, cuda, ...; auto takes a GPU if any")] = "auto",
) -> None:
    """Judge policies: closed loop in simulation through a running server, a run's open-loop table, or the
    probe of its features (also left in the run folder for `vla-adapt report`).

    Example: vla-adapt evaluate --closed-loop --url http://127.0.0.1:8000 --robot ur5e --episodes 20

    Example: vla-adapt evaluate --probe --run runs/quickstart
    """
    given = {name for name, value in locals().items() if value != _default(evaluate, name)}
    if closed_loop and probe:
        raise ValueError("got --probe and --closed-loop; run them one after the other")
    if closed_loop:
        _refuse_unread(given - {"closed_loop", *_CLOSED_LOOP}, "--closed-loop")
        if append and out is None:
            raise ValueError("--append adds to the file of --out; name it")
        _drive(robot, url, episodes, seed, execute, workers, label, token_file, out, append)
        return
    if run is None:
        raise ValueError(
            "evaluate wants --closed-loop (drives a server), --run RUN_DIR (open-loop table) or "
            "--probe --run RUN_DIR (robots told from features)"
        )
    if probe:
        _refuse_unread(given - {"probe", *_PROBE}, "--probe")
        _probe(run, windows, folds, device)
    else:
        _refuse_unread(given - {"run"}, "--run alone")
        _print_open_loop(run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
) -> None:
    """One HTML page: curves, per-robot tables, predicted against true actions, closed loop, camera frames.

    Several runs are also laid side by side. Needs neither model nor data; a run may still be at work.

    Example: vla-adapt report runs/one runs/two --out compared.html
    """
    from vla_adapt.evaluation.report import write_report

    write_report(runs, out)
    print(f"wrote {out}")


@sim_app.command("record")
def sim_record(
    robot: str,
    out: Annotated[
        Path, typer.Option(help="folder that holds datasets; ROBOT_sim/1.0.0 is written in it (RLDS)")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="training episodes")] = 46,
    held_out: Annotated[int, typer.Option(min=0, help="episodes of the val split")] = 6,
    seed: int = 0,
    workers: Annotated[int, typer.Option(min=1, help="simulators at a time")] = 2,
    noise: Annotated[bool, typer.Option(help="perturb what is executed; labels stay clean")] = True,
    slips: Annotated[
        bool, typer.Option(help="with noise: grippers slip too, so that retries are recorded")
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="replace a recording of other settings or of an older simulator"),
    ] = False,
) -> None:
    """Record scripted-expert episodes as RLDS. Example: vla-adapt sim record ur5e --out runs/d"""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from vla_adapt.sim.record import record

    result = record(
        robot, {"train": episodes, "val": held_out}, out, seed=seed, noise=noise, slips=slips,
        workers=workers, overwrite=overwrite,
    )  # fmt: skip
    state = (
        "already recorded"
        if result.reused
        else f"recorded in {result.seconds:.0f} s, {result.failed} failed attempts dropped"
    )
    print(f"{result.path}: {sum(result.episodes.values())} episodes, {result.steps} steps ({state})")


def _default(verb: Callable[..., None], option: str) -> Any:
    return signature(verb).parameters[option].default


def _refuse_unread(options: set[str], mode: str) -> None:
    """Raise ValueError for an option that was given and that `mode` does not read."""
    if options:
        name = min(options).replace("_", "-")
        raise ValueError(f"--{name} has no effect with {mode}; leave it out")


def _drive(
    robots: list[str] | None,
    url: str,
    episodes: int,
    seed: int,
    execute: int,
    workers: int,
    label: str,
    token_file: Path | None,
    out: Path | None,
    append: bool,
) -> None:
    from vla_adapt.evaluation.closed_loop import closed_loop, load_results, save_results, served_robots
    from vla_adapt.serving.access import read_token

    token = read_token(token_file) if token_file else None
    results = load_results(out) if append and out and out.is_file() else []
    for name in robots or served_robots(url, token=token):
        with progress_bar(name, episodes, "episodes") as bar:

            def tell(done: int, won: int, bar: Bar = bar) -> None:
                bar.done, bar.note = done, f"{won} succeeded"

            result = closed_loop(
                name, url, episodes, seed=seed, execute=execute, workers=workers, label=label, token=token,
                frames_dir=out.parent / "frames" if out else None,
                progress=tell,
            )  # fmt: skip
        results.append(result)
        mean = sum(result.steps) / len(result.steps)
        print(f"{name} {label}: {result.text()} (95 % Wilson), mean {mean:.0f} steps")
        if out:
            save_results(results, out)


def _probe(run: Path, windows: int, folds: int, device: str) -> None:
    from vla_adapt.evaluation.probe_report import HEAD, probe_notes, probe_rows
    from vla_adapt.evaluation.probe_run import PROBE_JSON, PROBE_PICTURE, probe_run
    from vla_adapt.evaluation.run_folder import RunFolder
    from vla_adapt.invariance.probe import ProbeConfig
    from vla_adapt.policy.device import usable_device

    opened = RunFolder.open(run)
    with console.status(f"probing {run}"):
        found = probe_run(opened, windows, ProbeConfig(folds=folds), usable_device(device))
    table = Table(*HEAD, title="can the robot be told from the features?")
    for row in probe_rows(found):
        table.add_row(*row)
    console.print(table)
    for note in probe_notes(found):
        print(note)
    print(f"wrote {run / PROBE_JSON} and {run / PROBE_PICTURE}")


def _print_open_loop(run: Path) -> None:
    from vla_adapt.evaluation.mean_ratio import mean_ratio

    file = run / "open_loop.json"
    if not file.is_file():
        raise ValueError(f"{run} has no open_loop.json; it is written when scripts/finetune.py ends")
    rows = json.loads(file.read_text())
    if not rows:
        raise ValueError(f"{run} held no episodes out, so no error was measured; give its data a val split")
    table = Table(
        "robot", "windows", "error", "predict-the-mean", "ratio", title="open loop, held-out episodes"
    )
    for row in rows:
        table.add_row(
            row["robot"], str(row["windows"]), f"{row['error']:.3f}", f"{row['baseline_error']:.3f}",
            f"{mean_ratio(row):.2f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
