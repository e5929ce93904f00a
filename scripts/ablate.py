"""Train the variants of an ablation with several seeds, judge them alike, and say who gains and who loses.

python scripts/ablate.py sharing --seeds 3                       # recipes/ablation/sharing.yaml
python scripts/ablate.py MINE.yaml --seeds 5 --closed-loop       # also drive simulated robots (needs [sim])
python scripts/ablate.py MINE.yaml --launch "accelerate launch --multi_gpu --num_processes 2"

Runs that are finished are not trained again: interrupt it when you like and start it again, or raise --seeds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console

from vla_adapt.evaluation.ablation import Ablation, Cell
from vla_adapt.evaluation.ablation_page import write_page
from vla_adapt.evaluation.ablation_run import Judging, run_ablation
from vla_adapt.evaluation.ablation_table import STYLES, markdown, rich_tables
from vla_adapt.evaluation.seed_comparison import Comparison
from vla_adapt.recipe import Recipe
from vla_adapt.training.finished_run import changed_since

FINETUNE = Path(__file__).with_name("finetune.py")


def main() -> None:
    arguments = parse()
    try:
        ablation = Ablation.load(arguments.ablation)
        recipes = {
            cell: Recipe.load(ablation.recipe, [*cell.overrides]) for cell in ablation.cells(arguments.seeds)
        }
        judging = Judging(
            arguments.windows, arguments.folds, arguments.episodes if arguments.closed_loop else 0,
            arguments.workers, "cuda" if torch.cuda.is_available() else "cpu",
        )  # fmt: skip
        launch = shlex.split(arguments.launch) if arguments.launch else [sys.executable]

        def train(cell: Cell) -> None:
            changed = changed_since(cell.folder, recipes[cell])
            if changed is None or changed:
                finetune(launch, ablation.recipe, cell, fresh=bool(changed))

        results = []
        for result in run_ablation(ablation, arguments.seeds, train, judging):
            results.append(result)
            leave(Comparison(ablation, results), ablation.folder)
    except ValueError as error:
        print(f"ablate: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    tell(Comparison(ablation, results))
    print(f"wrote ablation.json, ablation.md, ablation.html and ablation.png in {ablation.folder}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ablation", help="ablation file, or the name of one in recipes/ablation")
    parser.add_argument("--seeds", type=int, default=3, help="runs per variant")
    parser.add_argument("--launch", help="command that starts finetune.py; default: this Python, one process")
    parser.add_argument("--windows", type=int, default=200, help="probe: windows per robot")
    parser.add_argument("--folds", type=int, default=5, help="probe: of the cross-validation by episode")
    parser.add_argument("--closed-loop", action="store_true", help="drive simulated robots too")
    parser.add_argument("--episodes", type=int, default=20, help="closed loop: per robot and run")
    parser.add_argument("--workers", type=int, default=2, help="closed loop: simulators at a time")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds wants 1 or more (3 or more for intervals that say something)")
    return arguments


def finetune(launch: list[str], recipe: str, cell: Cell, fresh: bool) -> None:
    changes = [word for override in cell.overrides for word in ("--set", override)]
    ended = subprocess.run(
        [*launch, str(FINETUNE), recipe, *changes, *(["--fresh"] if fresh else [])], check=False
    )
    if ended.returncode:
        raise SystemExit(
            f"ablate: training of {cell} ended with status {ended.returncode}, see above; started again, the "
            "ablation goes on here"
        )


def leave(found: Comparison, folder: Path) -> None:
    """What is known so far, in the ablation's folder."""
    (folder / "ablation.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    (folder / "ablation.md").write_text(markdown(found))
    write_page(found, folder / "ablation.html")


def tell(found: Comparison) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    for table in rich_tables(found):
        console.print(table)
    for verdict, line in found.verdicts():
        console.print(line, style=STYLES[verdict])


if __name__ == "__main__":
    main()
