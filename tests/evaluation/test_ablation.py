"""An ablation: its runs, what is done again and what is not, how each is judged."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from vla_adapt.evaluation import ablation as module
from vla_adapt.evaluation.ablation import Ablation, Cell, CellResult, Judging, judge, run_ablation
from vla_adapt.evaluation.closed_loop import ClosedLoopResult
from vla_adapt.recipe import Recipe

TEXT = """
name: a
output: {output}
recipe: quickstart
changes: {{train: {{steps: 7}}, adaptation: {{kind: lora, rank: 2, alpha: 4}}}}
variants:
  own: {{}}
  told: {{policy.head.condition: token, train.batch_size: 8}}
"""
JUDGING = Judging(windows=12, folds=4)


def load(folder: Path) -> Ablation:
    file = folder / "a.yaml"
    file.write_text(TEXT.format(output=folder / "out"))
    return Ablation.load(str(file))


@pytest.mark.parametrize("name", Ablation.available())
def test_every_recipe_of_every_built_in_ablation_loads(name: str):
    ablation = Ablation.load(name)
    cells = ablation.cells(2)
    recipes = [Recipe.load(ablation.recipe, [*cell.overrides]) for cell in cells]
    assert len({recipe.output for recipe in recipes}) == len(cells) == 2 * len(ablation.variants)
    assert (
        len({(recipe.mixture_spec.model_dump_json(), recipe.train.model_dump_json()) for recipe in recipes})
        == 1
    )
    assert [recipe.seed for recipe in recipes] == [cell.seed for cell in cells]


def test_changes_of_a_variant_come_after_those_of_all(tmp_path: Path):
    ablation = load(tmp_path)
    own, told = (Recipe.load(ablation.recipe, [*cell.overrides]) for cell in ablation.cells(1))
    assert (own.train.steps, own.train.batch_size, own.policy.head.condition) == (7, 32, "none")
    assert (told.train.steps, told.train.batch_size, told.policy.head.condition) == (7, 8, "token")
    assert own.adaptation == told.adaptation
    assert told.output == str(tmp_path / "out" / "told" / "seed0")


def test_seeds_come_one_after_the_other(tmp_path: Path):
    cells = load(tmp_path).cells(2)
    assert [str(cell) for cell in cells] == ["own, seed 0", "told, seed 0", "own, seed 1", "told, seed 1"]


def test_mistakes_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean 'sharing'"):
        Ablation.load("sharin")
    (tmp_path / "b.yaml").write_text("name: b\noutput: o\nrecipe: quickstart\nvariant: {}\n")
    with pytest.raises(ValueError, match="did you mean 'variants'"):
        Ablation.load(str(tmp_path / "b.yaml"))


@pytest.fixture(scope="module")
def ran(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ablation, list[str], list[CellResult]]:
    """One seed of both variants, "trained" by copying a finished run; what was said; the results."""
    ablation, said = load(tmp_path_factory.mktemp("ablation")), []

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
