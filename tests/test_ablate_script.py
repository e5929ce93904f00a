"""`scripts/ablate.py` with runs that are "trained" by copying a finished one."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from vla_adapt.recipe import Recipe

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ablate.py"


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch, finished_run: Path, tmp_path: Path):
    """(run the script with some words, the commands that it started)."""
    commands: list[list[str]] = []

    def start(command: list[str], check: bool) -> subprocess.CompletedProcess:
        commands.append(command)
        words = command[command.index(next(word for word in command if word.endswith("finetune.py"))) + 1 :]
        recipe = Recipe.load(words[0], words[2::2])
        if "bad" in recipe.name:
            return subprocess.CompletedProcess(command, 3)
        shutil.copytree(finished_run, recipe.output)
        (Path(recipe.output) / "summary.json").write_text(json.dumps({"recipe": recipe.to_text()}))
        return subprocess.CompletedProcess(command, 0)

    def run(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["ablate.py", *words])
        monkeypatch.setattr("subprocess.run", start)
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run, commands


def file_of(folder: Path, *variants: str) -> str:
    lines = "".join(f"\n  {name}: {{}}" for name in variants)
    file = folder / "a.yaml"
    file.write_text(f"name: a\noutput: {folder / 'out'}\nrecipe: quickstart\nvariants:{lines}\n")
    return str(file)


def test_it_trains_what_is_not_finished_and_leaves_tables(ablate, tmp_path: Path, capsys):
    run, commands = ablate
    words = (file_of(tmp_path, "own", "same"), "--seeds", "1", "--windows", "8", "--folds", "2")
    run(*words, "--launch", "accelerate launch")
    assert [command[:2] for command in commands] == [["accelerate", "launch"]] * 2
    out = capsys.readouterr().out
    assert "[2/2] same, seed 0" in out
    assert "2 of 2 comparisons of a robot with own: no difference shown" in out
    left = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [cell["variant"] for cell in left["runs"]] == ["own", "same"]
    assert {row["difference"]["mean"] for row in left["rows"] if row["variant"] == "same"} == {0.0}
    assert all((tmp_path / "out" / f"ablation.{kind}").is_file() for kind in ("md", "html", "png"))
    run(*words)
    assert len(commands) == 2


def test_mistakes_end_it(ablate, tmp_path: Path, capsys):
    run, commands = ablate
    with pytest.raises(SystemExit) as ended:
        run("sharin")
    assert ended.value.code == 2
    assert "did you mean 'sharing'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="training of bad, seed 0 ended with status 3"):
        run(file_of(tmp_path, "bad", "own"), "--seeds", "1")
    assert len(commands) == 1
