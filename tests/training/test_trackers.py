"""Trackers: absent ones are refused, a resumed run stays the same run, a broken service stops nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from vla_adapt.adaptation.environment_facts import read_starts
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop, trackers
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import prepare
from vla_adapt.training.trackers import Trackers

MakeRecipe = Callable[..., Recipe]


class FakeWandb(ModuleType):
    """What Accelerate's tracker calls of wandb; keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.inits: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.config = SimpleNamespace(update=lambda values, **_: self.inits[-1].update(config=values))

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return SimpleNamespace(
            log=lambda values, step: self.rows.append((step, values)), finish=self._finish, config=self.config
        )

    def _finish(self) -> None:
        self.finished += 1


class Worker(Ranks):
    """A process that is not the main one."""

    def on_main(self, action: Callable[[], Any]) -> Any:
        del action


@pytest.fixture
def alone() -> Ranks:
    return Ranks(Accelerator(cpu=True))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def rows_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_what_is_not_installed_is_named_before_anything_starts(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trackers, "_is_there", lambda module: "tensorboard" in module)
    recipe = make_recipe(str(tmp_path / "r"), train={"trackers": ["tensorboard", "trackio"]})
    with pytest.raises(ValueError, match=r"trackio is not installed; pip install 'vla_adapt\[trackio\]'"):
        prepare(recipe)
    assert not (tmp_path / "r").exists()


def test_a_resumed_run_reports_to_the_same_run(
    make_recipe: MakeRecipe, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    train = {"steps": 4, "batch_size": 8, "log_every": 1, "save_every": 2, "trackers": ["wandb"]}
    recipe = make_recipe(str(tmp_path / "a run"), train={**train, "project": "robots"})
    genuine = loop._check_finite

    def interrupt(*given: Any) -> None:
        if given[-1] == 3:
            raise KeyboardInterrupt
        genuine(*given)

    monkeypatch.setattr(loop, "_check_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe)
    monkeypatch.setattr(loop, "_check_finite", genuine)
    run = loop.train(recipe)
    first, second = wandb.inits
    assert first["id"] == second["id"]
    assert first["id"].startswith("a-run-")
    assert (first["project"], first["resume"], second["resume"]) == ("robots", "allow", "allow")
    assert first["config"]["train"]["steps"] == 4
    assert wandb.finished == 2
    assert [step for step, _ in wandb.rows] == [1, 2, 3, 3, 4]
    assert wandb.rows[2][1]["ur5e/loss"] == wandb.rows[3][1]["ur5e/loss"], "step 3 was lost and trained again"
    for step, values in wandb.rows:
        for row in (row for row in rows_of(run) if row["step"] == step):
            assert values[f"{row['robot']}/loss"] == row["loss"]
            assert values["learning_rate"] == row["learning_rate"]
    timed = rows_of(run, "throughput.jsonl")
    assert [row["step"] for row in timed] == [1, 2, 3, 4]
    assert wandb.rows[-1][1]["throughput/samples_per_s"] == timed[-1]["samples_per_s"] > 0
    assert not (run / "tensorboard").exists()
    assert [start["after_step"] for start in read_starts(run)] == [0, 2]


def test_a_new_run_in_the_same_folder_is_another_run(alone: Ranks, tmp_path: Path, wandb: FakeWandb):
    for done in (0, 5, 0):
        with Trackers(alone, ("wandb",), "p", tmp_path, {}, done):
            pass
    first, again, new = (options["id"] for options in wandb.inits)
    assert first == again != new


def test_one_that_does_not_start_says_what_to_do(
    alone: Ranks, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with (
        pytest.raises(ValueError, match=r"wandb does not start \(no API key\).*WANDB_MODE=offline"),
        Trackers(alone, ("wandb",), "p", tmp_path, {}, 0),
    ):
        pass


def test_one_that_fails_later_is_left_out(
    alone: Ranks, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
):
    with Trackers(alone, ("tensorboard", "wandb"), "p", tmp_path, {}, 0) as opened:
        opened.log({"loss": 1.0}, 1)
        monkeypatch.setattr(wandb, "rows", None)
        with pytest.warns(UserWarning, match="wandb failed and is left out"):
            opened.log({"loss": 2.0}, 2)
        opened.log({"loss": 3.0}, 3)
    assert wandb.finished == 0
    assert list((tmp_path / "tensorboard").iterdir())


def test_only_the_main_process_reports(tmp_path: Path, wandb: FakeWandb):
    worker = Worker(Accelerator(cpu=True))
    with Trackers(worker, ("wandb", "tensorboard"), "p", tmp_path, {}, 0) as opened:
        opened.log({"loss": 1.0}, 1)
    assert wandb.inits == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_wandb_works_offline(alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for done in (0, 2):
        with Trackers(alone, ("wandb",), "p", tmp_path, {"name": "x", "train": {"steps": 4}}, done) as opened:
            opened.log({"ur5e/loss": 0.5}, done + 1)
    own = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{own}"))) in (1, 2), "by the second they began"


@pytest.mark.slow
def test_the_real_trackio_works_here(alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for done in (0, 2):
        with Trackers(alone, ("trackio",), "p", tmp_path, {"name": "x"}, done) as opened:
            opened.log({"loss": 0.5}, done + 1)
    own = json.loads((tmp_path / "trackers.json").read_text())["trackio"]
    runs = trackio.Api().runs("p")
    assert [run.name for run in runs] == [own]
