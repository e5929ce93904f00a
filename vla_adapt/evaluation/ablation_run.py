"""Train the runs of an ablation and judge each in the same ways; what is done is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_adapt.evaluation.ablation import Ablation, Cell
from vla_adapt.evaluation.closed_loop import ClosedLoopResult, closed_loop, load_results, save_results
from vla_adapt.evaluation.local_server import local_server
from vla_adapt.evaluation.probe_run import PROBE_JSON, TAPS, RunProbe, probe_run
from vla_adapt.evaluation.run_folder import RunFolder
from vla_adapt.invariance.probe import ProbeConfig, ProbeResult

CLOSED_LOOP = "closed_loop.json"


@dataclass(frozen=True)
class Judging:
    """How every run is judged.

    Attributes:
        windows: probe, per robot.
        folds: of the probe.
        episodes: closed loop, per robot; 0: none.
        workers: closed loop, simulators at a time.
        device: where the policy is probed.
    """

    windows: int = 200
    folds: int = 5
    episodes: int = 0
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class CellResult:
    """What was measured of one run.

    Attributes:
        error: robot -> held-out mean absolute error, in half action ranges.
        probe: tap -> balanced accuracy 0..1 after training, of the better of linear and MLP.
        probe_before: the same of the bare base.
        chance: of the probe.
        success: robot -> (successes, episodes) in closed loop.
    """

    variant: str
    seed: int
    error: dict[str, float]
    probe: dict[str, float]
    probe_before: dict[str, float]
    chance: float
    success: dict[str, tuple[int, int]]

    @property
    def text(self) -> str:
        told = ", ".join(f"from {tap} {100 * accuracy:.0f} %" for tap, accuracy in self.probe.items())
        return f"held-out error {sum(self.error.values()) / len(self.error):.3f}, robot told {told}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def run_ablation(
    ablation: Ablation,
    seeds: int,
    train: Callable[[Cell], None],
    judging: Judging | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[CellResult]:
    """Train and judge every cell, one after the other; what is there already is not done again.

    Args:
        train: trains one cell unless it is finished.
        say: told where it is.

    Raises:
        ValueError: a run that holds nothing out, so that there is no error to compare.
    """
    judging = judging or Judging()
    cells = ablation.cells(seeds)
    for number, cell in enumerate(cells, start=1):
        say(f"[{number}/{len(cells)}] {cell}")
        train(cell)
        result = judge(cell, judging)
        say(f"[{number}/{len(cells)}] {cell}: {result.text}")
        yield result


def judge(cell: Cell, judging: Judging) -> CellResult:
    """Measure one finished run; files in its folder that are newer than the run count as measured."""
    run = RunFolder.open(cell.folder)
    error = {robot: row["error"] for robot, row in run.open_loop().items()}
    if not error:
        raise ValueError(
            f"{cell.folder}: nothing was held out, so there is no error; give the data a val split"
        )
    found = RunProbe.load(cell.folder) if _newer(cell.folder / PROBE_JSON) else None
    if found is None or (found.windows, found.folds) != (judging.windows, judging.folds):
        found = probe_run(run, judging.windows, ProbeConfig(folds=judging.folds), judging.device)
    driven = _drive(run, judging) if judging.episodes else []
    return CellResult(
        variant=cell.variant,
        seed=cell.seed,
        error=error,
        probe={tap: _best(found.after[tap]) for tap in TAPS},
        probe_before={tap: _best(found.before[tap]) for tap in TAPS},
        chance=found.after[TAPS[0]].chance,
        success={result.robot: (result.successes, result.episodes) for result in driven},
    )


def _best(result: ProbeResult) -> float:
    return max(result.linear.accuracy, result.mlp.accuracy)


def _newer(file: Path) -> bool:
    """Whether a judgement in a run's folder is of the run that is there now."""
    return file.is_file() and file.stat().st_mtime >= (file.parent / "summary.json").stat().st_mtime


def _drive(run: RunFolder, judging: Judging) -> list[ClosedLoopResult]:
    """Every robot of the run in simulation, through a server of its own."""
    file = run.path / CLOSED_LOOP
    done = load_results(file) if _newer(file) else []
    if done and all(result.episodes == judging.episodes for result in done):
        return done
    with local_server(run.base, run.path / "bundles", run.path / "server.url") as url:
        results = [
            closed_loop(robot, url, judging.episodes, workers=judging.workers, label=run.recipe["name"])
            for robot in run.bundles()
        ]
    save_results(results, file)
    return results
