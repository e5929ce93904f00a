"""A run's folder: what is read from it, and what is said when it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vla_adapt.evaluation.run_folder import RunFolder
from vla_adapt.resources import tiny_base_dir


def test_a_finished_run(finished_run: Path, random_base: Path):
    run = RunFolder.open(finished_run)
    assert set(run.bundles()) == {"ur5e", "bimanual_panda"}
    assert [Path(source.path).exists() for source in run.mixture.sources] == [True, True]
    assert run.start == run.base == random_base
    assert {robot for robot, row in run.open_loop().items() if row["error"] > 0} == set(run.bundles())


def run_of(folder: Path, **recipe: object) -> RunFolder:
    (folder / "bundles").mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return RunFolder.open(folder)


def test_where_the_base_is(tmp_path: Path):
    assert run_of(tmp_path, base="tiny").base == tiny_base_dir()
    assert run_of(tmp_path, base="tiny-random").start == tmp_path / "initial_base"
    (tmp_path / "model").mkdir()
    full = run_of(tmp_path, base="tiny")
    assert (full.start, full.base) == (tiny_base_dir(), tmp_path / "model")
    assert full.open_loop() == {}


def test_both_spellings_of_a_mixture(tmp_path: Path):
    short = run_of(tmp_path, mixture=[{"path": "a"}])
    long = run_of(tmp_path, mixture={"sources": [{"path": "a"}], "balance": None})
    assert short.mixture == long.mixture


def test_what_is_missing_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no run: no recipe\.yaml"):
        RunFolder.open(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(ValueError, match="no finished run: no bundles"):
        RunFolder.open(tmp_path)
    (tmp_path / "bundles").mkdir()
    with pytest.raises(ValueError, match="no bundle in"):
        RunFolder.open(tmp_path).bundles()
