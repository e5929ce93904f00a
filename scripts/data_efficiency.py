"""How many episodes a robot needs: LoRA on few against training from scratch on many, driven in simulation.

    python scripts/data_efficiency.py                    # the UR5e; about an hour on two idle cores
    python scripts/data_efficiency.py --robot bimanual_panda --starts 50

All cells share recorder, loss, batch and evaluation. A table and a curve are
left in runs/data_efficiency/ROBOT. What is done is not done again: interrupt it when you like
and start it again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from quickstart_stages import ROBOTS, base_of, drive, finetune, record, stage, up_to_date
from scipy.stats import fisher_exact

from vla_adapt.evaluation.interval import rate_text
from vla_adapt.evaluation.local_server import local_server

HELD_OUT, SEED = 6, 2  # of other starts than the quickstart's episodes


@dataclass(frozen=True)
class Cell:
    """One training run: `recipe` on the first `episodes` recorded ones.

    The recipes are the quickstart's controls, for whichever robot the episodes are of.
    """

    way: str
    recipe: str
    episodes: int
    steps: int

    @property
    def label(self) -> str:
        return f"{self.way}, {self.episodes} episodes, {self.steps} steps"


LORA, SCRATCH = "control_ur5e_lora", "control_ur5e_scratch"
CELLS = (
    Cell("LoRA", LORA, 10, 1000),
    Cell("LoRA", LORA, 50, 1000),
    Cell("LoRA", LORA, 50, 3000),
    Cell("from scratch", SCRATCH, 50, 1000),
    Cell("from scratch", SCRATCH, 1000, 3000),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--robot", choices=[name for name in ROBOTS if name != "franka_panda"], default="ur5e"
    )
    parser.add_argument("--starts", type=int, default=100, help="closed-loop episodes per cell")
    arguments = parser.parse_args()
    folder = Path("runs/data_efficiency") / arguments.robot
    most = max(cell.episodes for cell in CELLS)
    stage("record", f"{most} + {HELD_OUT} episodes of {arguments.robot}", "6 minutes")
    record(arguments.robot, folder / "episodes", most, HELD_OUT, SEED)
    rows = [driven(cell, arguments.robot, arguments.starts, folder) for cell in CELLS]
    table = markdown(rows)
    (folder / "table.md").write_text(table)
    draw(rows, arguments.robot, folder / "curve.png")
    print(f"\n{table}\nwrote {folder / 'table.md'} and {folder / 'curve.png'}")


def driven(cell: Cell, robot: str, starts: int, folder: Path) -> dict:
    """Train and drive one cell, unless that was done; its row."""
    run = folder / f"{cell.way.replace(' ', '_').lower()}_{cell.episodes}_{cell.steps}"
    stage("train", f"{robot}: {cell.label}", f"{cell.steps // 250} minutes")
    finetune(
        cell.recipe,
        f"output={run}",
        f"name={run.name}",
        f"title='{robot}: {cell.label}'",
        f"mixture.0.path={folder / 'episodes' / f'{robot}_sim'}",
        f"mixture.0.episodes={cell.episodes}",
        f"train.steps={cell.steps}",
    )
    out = run / "closed_loop.json"
    if not up_to_date(out, [run / "summary.json"], starts, 1):
        out.unlink(missing_ok=True)
        with local_server(base_of(run), run / "bundles", run / "server.url") as url:
            drive(url, robot, cell.label, starts, out)
    error = json.loads((run / "open_loop.json").read_text())[0]["error"]
    return {
        **json.loads(out.read_text())[0],
        "way": cell.way,
        "train_episodes": cell.episodes,
        "steps_trained": cell.steps,
        "error": error,
    }


def markdown(rows: list[dict]) -> str:
    """The table, and whether LoRA on few beats training from scratch on most."""
    lines = [
        "| trained | episodes | steps | held-out error | closed-loop success |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (row["way"], row["train_episodes"], row["steps_trained"], f"{row['error']:.3f}", success(row))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    by_data = sorted(rows, key=lambda row: (row["train_episodes"], row["steps_trained"]))
    few = [row for row in by_data if row["way"] == "LoRA"][-1]
    many = [row for row in by_data if row["way"] != "LoRA"][-1]
    counts = [[row["successes"], row["episodes"] - row["successes"]] for row in (few, many)]
    chance = float(fisher_exact(counts).pvalue)  # type: ignore[attr-defined]
    better = few["successes"] / few["episodes"] > many["successes"] / many["episodes"]
    verdict = "better than" if better else "not better than"
    lines.append(
        f"\n{few['label']}: {verdict} {many['label']} (p = {chance:.2g}, Fisher's exact test, two-sided; one "
        "training seed)"
    )
    return "\n".join(lines) + "\n"


def success(row: dict) -> str:
    return rate_text(row["successes"], row["episodes"])


def draw(rows: list[dict], robot: str, file: Path) -> None:
    """Success over the number of episodes, with 95 % Wilson intervals."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        values = [100 * row["successes"] / row["episodes"] for row in mine]
        spans = [[100 * bound for bound in row["interval_95"]] for row in mine]
        below = [value - low for value, (low, _) in zip(values, spans, strict=True)]
        above = [high - value for value, (_, high) in zip(values, spans, strict=True)]
        axes.errorbar(
            [row["train_episodes"] for row in mine], values, [below, above], marker="o", capsize=4, label=way
        )
    axes.set(xscale="log", xlabel="episodes", ylabel="closed-loop success, %", ylim=(0, 100), title=robot)
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
