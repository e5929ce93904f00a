"""What a report reads of a run, finished or at work; names for several."""

from __future__ import annotations

import shutil
from pathlib import Path

from vla_adapt.evaluation.run_facts import RunFacts, distinct_names


def test_a_finished_run(finished_run: Path):
    run = RunFacts.load(finished_run)
    assert run.robots == ["ur5e", "bimanual_panda"]
    assert run.summary["robots"]["ur5e"]["parameters"] > 0
    assert [start["after_step"] for start in run.starts] == [0]
    assert {"lora, parallel head", "3 steps of 8 samples"} <= set(run.headline)
    assert "not finished" not in run.headline


def test_a_run_at_work(finished_run: Path, tmp_path: Path):
    shutil.copy(finished_run / "metrics.jsonl", tmp_path)
    run = RunFacts.load(tmp_path)
    assert run.robots == ["ur5e", "bimanual_panda"]
    assert run.headline == ["not finished"]
    assert (run.judged, run.drawn, run.starts) == ({}, [], [])


def test_names_are_as_short_as_they_can_be():
    assert distinct_names([Path("/a/x"), Path("/b/y")]) == ["x", "y"]
    assert distinct_names([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]
    assert distinct_names([Path("/a/x")]) == ["x"]
