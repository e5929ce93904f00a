"""The page: all in one file, for one run and several, finished or not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from vla_adapt.evaluation.closed_loop import ClosedLoopResult, save_results
from vla_adapt.evaluation.report import write_report


@pytest.fixture(scope="module")
def other_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, with validation while training and a better UR5e."""
    folder = tmp_path_factory.mktemp("other") / "r"
    shutil.copytree(finished_run, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "validation/ur5e/loss": 0.5}) + "\n")
    rows = json.loads((folder / "open_loop.json").read_text())
    rows[0] |= {"error": 0.123, "baseline_error": 0.492}
    (folder / "open_loop.json").write_text(json.dumps(rows))
    return folder


def page_of(runs: list[Path], folder: Path) -> str:
    write_report(runs, folder / "deep" / "page.html")
    return (folder / "deep" / "page.html").read_text()


def test_one_run(finished_run: Path, tmp_path: Path):
    page = page_of([finished_run], tmp_path)
    assert "Runs side by side" not in page
    assert "Validation while training" not in page
    for words in ("ur5e_fake, episode", "predict-the-mean", "adaptation:", "after step 0", "62,368"):
        assert words in page
    sources = re.findall(r'(?:src|href)="?([^">]{0,10})', page)
    assert len(sources) == 3, "curves and a drawn episode of each robot"
    assert set(sources) == {"data:image"}, "nothing is loaded from elsewhere"


def test_several_runs(finished_run: Path, other_run: Path, tmp_path: Path):
    page = page_of([finished_run, other_run, finished_run], tmp_path)
    assert page.count("<h2>Run ") == 2
    assert "0.123 (<span class=good>0.25</span>)" in page
    assert "Validation while training" in page
    assert page.index("Runs side by side") < page.index("<h2>Run ")


def test_driven_robots(other_run: Path, tmp_path: Path):
    results = [ClosedLoopResult("ur5e", "LoRA", 4, 3, 9001, steps=[10, 20, 30, 40])]
    save_results(results, other_run / "closed_loop.json")
    page = page_of([other_run], tmp_path)
    assert "Closed loop (closed_loop)" in page
    assert "<td>LoRA</td>" in page
    assert "<td>25</td>" in page


def test_a_run_at_work_and_no_run(finished_run: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    shutil.copy(finished_run / "metrics.jsonl", tmp_path / "run")
    page = page_of([tmp_path / "run"], tmp_path)
    assert "not finished" in page
    assert "Open loop" not in page
    with pytest.raises(ValueError, match="holds no run"):
        write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
