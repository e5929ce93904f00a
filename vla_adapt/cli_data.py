"""`vla-adapt data ...`: index, examine, look at, measure and convert datasets.

As in `cli.py`, imports happen inside the verbs: `vla-adapt robots` must answer at once and without PyTorch.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_adapt.progress_bar import progress_bar

if TYPE_CHECKING:
    from vla_adapt.episodes.doctor.diagnosis import Diagnosis
    from vla_adapt.episodes.mixing.mixture_spec import Source

data_app = typer.Typer(
    no_args_is_help=True, help="Datasets. Example: vla-adapt data doctor runs/x/episodes/ur5e_sim"
)
console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=not sys.stdout.isatty())

COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}

Data = Annotated[
    str, typer.Argument(help="a dataset (folder, file or URL), a recipe, or a mixture (YAML file or name)")
]
Folder = Annotated[str, typer.Argument(help="a dataset: RLDS or LeRobot folder, HDF5 file or folder, or URL")]
Robot = Annotated[str | None, typer.Option("--embodiment", help="the robot: name or YAML file")]
Entry = Annotated[
    str | None, typer.Option("--entry", help="how fields map onto the robot: catalogued name or YAML file")
]
Split = Annotated[str, typer.Option("--split")]
Splits = Annotated[list[str] | None, typer.Option("--split", help="repeatable; default: train")]
OnError = Annotated[
    str | None,
    typer.Option(
        "--on-error",
        help="damaged episodes: 'error', or 'skip' and say so; default: as the mixture says, else 'error'",
    ),
]
Where = Annotated[
    str | None, typer.Option("--folder", help="with a named mixture: the folder that holds its datasets")
]
Json = Annotated[Path | None, typer.Option("--json", help="also write it here as JSON")]


@data_app.command("index")
def data_index(
    data: Data,
    embodiment: Robot = None,
    entry: Entry = None,
    split: Splits = None,
    folder: Where = None,
    on_error: OnError = None,
) -> None:
    """Index datasets (once; later opens reuse it), of a mixture also the splits that are judged on.

    Examples: vla-adapt data index data/bridge_dataset; vla-adapt data index recipes/bridge_lora.yaml
    """
    from vla_adapt.episodes.mixing.open_mixture import open_split

    for source in _sources(data, embodiment, entry, split, folder, on_error):
        for name in dict.fromkeys((source.split, source.judged_split or source.split)):
            dataset = open_split(source, name)
            stride = f" (stride {source.stride})" if source.stride > 1 else ""
            steps = int(dataset.lengths.sum())
            told = f"{len(dataset)} episodes, {steps} steps{stride}, {dataset.embodiment.name}"
            console.print(f"{dataset.name} [{name}]: {told}", markup=False)


@data_app.command("doctor")
def data_doctor(
    data: Data,
    embodiment: Robot = None,
    entry: Entry = None,
    split: Splits = None,
    folder: Where = None,
    max_episodes: Annotated[
        int, typer.Option(help="episodes of each dataset to examine, evenly spread; 0: all", min=0)
    ] = 1000,
    images: Annotated[int, typer.Option(help="about how many frames of each camera to look at", min=0)] = 64,
    json_file: Json = None,
) -> None:
    """Examine datasets and say, with evidence, what is wrong with them; exit code 1 when there are errors.

    Examples: vla-adapt data doctor data/bridge_dataset --split train --split val;
    vla-adapt data doctor recipes/bridge_lora.yaml; vla-adapt data doctor rtx --folder data
    """
    from vla_adapt.episodes.doctor.diagnosis import examine
    from vla_adapt.episodes.doctor.doctor_open import open_patients

    _check_json(json_file)
    sources = _sources(data, embodiment, entry, split, folder)
    patients = open_patients(sources)
    with progress_bar("examining") as bar:
        diagnosis = examine(
            patients.datasets, patients.names, max_episodes or None, images,
            lambda name, done, of, what: bar.at(f"{name}: {what}", done, of), patients.findings,
            patients.strides,
        )  # fmt: skip
    _print_diagnosis(diagnosis)
    if json_file:
        json_file.write_text(json.dumps(diagnosis.to_dict(), indent=1))
    if diagnosis.count("error"):
        raise SystemExit(1)


@data_app.command("inspect")
def data_inspect(
    data: Data,
    episode: Annotated[int, typer.Option(help="number of the episode, from 0")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file, of a mixture their folder; default: DATASET_episode_N.html here"),
    ] = None,
    embodiment: Robot = None,
    entry: Entry = None,
    split: Split = "train",
    folder: Where = None,
    max_mb: Annotated[float, typer.Option(help="megabytes of frames to embed, above 0")] = 8.0,
) -> None:
    """Write an episode as an HTML page: frames with a scrubber, curves per named slot, facts.

    Of a mixture that episode of each of its datasets. Examples:
    vla-adapt data inspect data/bridge_dataset --episode 3 --out episode.html;
    vla-adapt data inspect recipes/bridge_lora.yaml --out pages
    """
    from vla_adapt.episodes.inspection.inspect_page import write_page
    from vla_adapt.episodes.mixing.open_mixture import open_split

    sources = _sources(data, embodiment, entry, [split], folder)
    opened = [open_split(source, source.split, check=False) for source in sources]
    for source, dataset in zip(sources, opened, strict=True):
        if not 0 <= episode < len(dataset):
            where = f"{source.path} [{source.split}]"
            raise ValueError(f"episode {episode} of {where}: it has {len(dataset)}; count from 0")
    pages = [Path(f"{name}_episode_{episode}.html") for name in _different([each.name for each in opened])]
    if out is not None:
        pages = [out] if len(opened) == 1 else [out / page for page in pages]
    for dataset, page in zip(opened, pages, strict=True):
        with progress_bar("frames") as bar:
            write_page(dataset, episode, page, max_mb, lambda done, of: bar.at("frames", done, of))
        item = dataset[episode]
        print(
            f"{dataset.name} episode {episode} ({item.episode_id}): {len(item)} steps, {item.told!r}; "
            f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)"
        )


@data_app.command("stats")
def data_stats(
    data: Data,
    embodiment: Robot = None,
    entry: Entry = None,
    split: Split = "train",
    folder: Where = None,
    on_error: OnError = None,
    workers: Annotated[int, typer.Option(help="processes that read", min=0)] = 0,
    json_file: Json = None,
) -> None:
    """Statistics of action and state per robot and unified slot (SI units), as training computes them.

    Example: vla-adapt data stats recipes/bridge_lora.yaml --json s.json
    """
    from vla_adapt.episodes.measuring.statistics import robot_statistics
    from vla_adapt.episodes.mixing.open_mixture import open_source

    _check_json(json_file)
    sources = _sources(data, embodiment, entry, [split], folder, on_error)
    opened = [open_source(source).train for source in sources]
    found = robot_statistics(opened, workers=workers)
    for robot, statistics in found.items():
        _print_statistics(f"{robot}: action", statistics.action, "")
        if statistics.proprio is not None:
            _print_statistics(f"{robot}: state", statistics.proprio, "_delta")
    if json_file:
        tree = {
            robot: {
                "action": one.action.to_dict(),
                "proprio": None if one.proprio is None else one.proprio.to_dict(),
            }
            for robot, one in found.items()
        }
        json_file.write_text(json.dumps(tree, indent=1))


@data_app.command("convert")
def data_convert(
    source: Folder,
    target: Annotated[Path, typer.Argument(help="folder to write")],
    to: Annotated[str, typer.Option("--to", help="'lerobot' (v3.0) or 'rlds'")],
    embodiment: Robot = None,
    entry: Entry = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="repeatable; default: all")] = None,
    images: Annotated[str, typer.Option(help="LeRobot: 'image' keeps pixels, 'video' is small")] = "image",
) -> None:
    """Convert a dataset between formats, all splits; says what of it the other format cannot hold.

    Example: vla-adapt data convert data/bridge_dataset out/bridge --to lerobot
    """
    from vla_adapt.episodes.conversion.convert import convert_dataset
    from vla_adapt.suggest import did_you_mean

    for option, got, known in (("--to", to, ("lerobot", "rlds")), ("--images", images, ("image", "video"))):
        if got not in known:
            raise ValueError(f"{option} '{got}': {did_you_mean(got, known)}")
    options: Any = {
        "to": to,
        "embodiment": embodiment,
        "entry": entry,
        "splits": split or (),
        "images": images,
    }
    done = convert_dataset(source, target, **options)
    counts = ", ".join(f"{name} {count}" for name, count in done.episodes.items())
    print(f"wrote {sum(done.episodes.values())} episodes to {target} ({to}): {counts}")
    for line in done.left_behind:
        print(f"left behind: {line}")


def _different(names: list[str]) -> list[str]:
    """Names of which none is there twice: a second one is numbered, by a number that no other has."""
    given: list[str] = []
    for name in names:
        free = (f"{name}_{number}" for number in itertools.count(2))
        given.append(name if name not in given else next(n for n in free if n not in (*names, *given)))
    return given


def _check_json(file: Path | None) -> None:
    """Refuse now what could not be written after all the work."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ValueError(f"--json {file}: wanted a file in a folder that is there")


def _sources(
    data: str,
    embodiment: str | None,
    entry: str | None,
    splits: list[str] | None,
    folder: str | None,
    on_error: str | None = None,
) -> list[Source]:
    """The datasets meant by a path, a recipe or a mixture; `on_error`, where given, is that of all.

    Raises:
        ValueError: an option that does not go with what `data` is.
    """
    own = {} if on_error is None else {"on_error": _policy(on_error)}
    return [source.model_copy(update=own) for source in _meant(data, embodiment, entry, splits, folder)]


def _meant(
    data: str, embodiment: str | None, entry: str | None, splits: list[str] | None, folder: str | None
) -> list[Source]:
    from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, NamedMixture, Source
    from vla_adapt.episodes.mixing.open_mixture import resolve
    from vla_adapt.recipe import Recipe
    from vla_adapt.suggest import did_you_mean, parse_yaml, validate_model

    file = Path(data).expanduser()
    is_yaml = file.is_file() and file.suffix in (".yaml", ".yml")
    tree = parse_yaml(file.read_text(), str(file)) if is_yaml else {}
    there = file.exists() or "://" in data
    if "mixture" in tree or (not there and data in Recipe.available()):
        spec = Recipe.load(data).mixture_spec
    elif "datasets" in tree or (not there and data in NamedMixture.available()):
        if folder is None:
            raise ValueError(f"mixture '{data}' names no paths; pass --folder, where its datasets lie")
        spec = MixtureSpec(named=data, folder=folder)
    elif is_yaml:
        spec = validate_model(MixtureSpec, tree, str(file))
    else:
        if folder is not None:
            raise ValueError(f"--folder goes with a named mixture; '{data}' is none")
        if not there:
            known = [*NamedMixture.available(), *Recipe.available()]
            raise ValueError(f"no file, folder, recipe or mixture '{data}'; {did_you_mean(data, known)}")
        return [
            Source(path=data, embodiment=embodiment, entry=entry, split=split, held_out_split="")
            for split in splits or ["train"]
        ]
    own_split = splits if splits != ["train"] else None
    for name, given in (("--embodiment", embodiment), ("--entry", entry), ("--split", own_split)):
        if given:
            raise ValueError(f"{name} goes with one dataset; inside '{data}' each dataset has its own")
    return resolve(spec)[0]


def _policy(on_error: str) -> Literal["error", "skip"]:
    """Checked here, so that a misspelling is told before anything is read."""
    from vla_adapt.episodes.storage.damage import check_on_error

    check_on_error(on_error)
    return "skip" if on_error == "skip" else "error"


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    from vla_adapt.episodes.doctor.doctor_finding import SEVERITIES

    for one in diagnosis.examined:
        console.print(
            f"{one.name} ({one.robot}): examined {one.examined} of {one.episodes} episodes, "
            f"{one.steps} steps, {one.images} images",
            markup=False,
        )
    if diagnosis.findings:
        table = Table("finding", "evidence, and what to do", show_lines=True)
        for finding in diagnosis.findings:
            color = COLORS[finding.severity]
            table.add_row(
                f"[{color}]{finding.severity}[/] [bold]{finding.code}[/]\n{escape(finding.dataset)}",
                f"{escape(finding.evidence)}\n[dim]-> {escape(finding.advice)}[/]",
            )
        console.print(table)
    counts = [(diagnosis.count(severity), severity) for severity in SEVERITIES]
    console.print(", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for count, severity in counts))


def _print_statistics(title: str, statistics: Any, dropped: str) -> None:
    from vla_adapt.types import SLOT_NAMES

    keys = ("mean", "std", "min", "q01", "q99", "max")
    table = Table("slot", *keys, title=f"{title}, {statistics.count} steps", title_justify="left")
    for slot, name in enumerate(SLOT_NAMES):
        if statistics.mask[slot]:
            name = name.replace(dropped, "") if dropped else name
            table.add_row(name, *(f"{getattr(statistics, key)[slot]:.4g}" for key in keys))
    console.print(table)
