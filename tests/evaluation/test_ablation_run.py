"""The runs of an ablation: what is done again and what is not, how each is judged."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from vla_adapt.evaluation import ablation_run as module
from vla_adapt.evaluation.ablation import Ablation, Cell
from vla_adapt.evaluation.ablation_run import CellResult, Judging, judge, run_ablation
from vla_adapt.evaluation.closed_loop import ClosedLoopResult

JUDGING = Judging(windows=12, folds=4)


@pytest.fixture(scope="module")
def ran(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ablation, list[str], list[CellResult]]:
    """One seed of both variants, "trained" by copying a finished run; what was said; the results."""
    output = tmp_path_factory.mktemp("ablation")
    ablation = Ablation(name="a", output=str(output), recipe="quickstart", variants={"own": {}, "told": {}})
    said: list[str] = []

    def train(cell: Cell) -> None:
        shutil.copytree(finished_run, cell.folder)

    return ablation, said, list(run_ablation(ablation, 1, train, JUDGING, said.append))


def test_every_run_is_judged(ran):
    ablation, said, results = ran
    assert [(result.variant, result.seed) for result in results] == [("own", 0), ("told", 0)]
    for result in results:
        rows = json.loads((ablation.folder / result.variant / "seed0" / "open_loop.json").read_text())
        assert result.error == {row["robot"]: row["error"] for row in rows}
        assert set(result.probe) == set(result.probe_before) == {"patches", "hidden"}
        assert (result.chance, result.success) == (0.5, {})
    assert said[0] == "[1/2] own, seed 0"
    assert "held-out error" in said[1]


def test_a_judgement_is_kept_as_long_as_it_is_of_this_run(ran, monkeypatch: pytest.MonkeyPatch):
    ablation, _, results = ran
    cell = ablation.cells(1)[0]
    calls = []
    monkeypatch.setattr(
        module, "probe_run", lambda *given: calls.append(given) or module.RunProbe.load(cell.folder)
    )
    assert judge(cell, JUDGING) == results[0]
    assert not calls
    judge(cell, Judging(windows=13, folds=4))
    judge(cell, Judging(windows=12, folds=3))
    assert len(calls) == 2
    later = (cell.folder / "probe.json").stat().st_mtime + 10
    os.utime(cell.folder / "summary.json", (later, later))  # trained again
    judge(cell, JUDGING)
    assert len(calls) == 3


def test_robots_are_driven_once(ran, monkeypatch: pytest.MonkeyPatch):
    cell = ran[0].cells(1)[1]
    driven = []

    def drive(robot: str, url: str, episodes: int, workers: int, label: str) -> ClosedLoopResult:
        driven.append((robot, url, workers, label))
        return ClosedLoopResult(robot, label, episodes, 2, 9001)

    monkeypatch.setattr(module, "closed_loop", drive)
    monkeypatch.setattr(module, "local_server", lambda *given: nullcontext("http://here"))
    judging = Judging(windows=12, folds=4, episodes=3, workers=2)
    first = judge(cell, judging)
    assert first.success == {"bimanual_panda": (2, 3), "ur5e": (2, 3)}
    assert driven == [(robot, "http://here", 2, "test") for robot in ("bimanual_panda", "ur5e")]
    assert judge(cell, judging) == first
    assert len(driven) == 2
    judge(cell, Judging(windows=12, folds=4, episodes=4))
    assert len(driven) == 4


def test_without_held_out_episodes_there_is_nothing_to_compare(ran, tmp_path: Path):
    done: Cell = ran[0].cells(1)[0]
    folder = shutil.copytree(done.folder, tmp_path / "run")
    (folder / "open_loop.json").write_text("[]")
    with pytest.raises(ValueError, match="nothing was held out"):
        judge(Cell("own", 0, folder, ()), JUDGING)
