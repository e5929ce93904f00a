"""`vla-adapt train`: a plan that is read before a run, refusals with exit code 2, and the run itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vla_adapt import cli
from vla_adapt.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
LAUNCH = Path(__file__).resolve().parents[1] / "recipes" / "launch"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vla-adapt", "train", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return command


@pytest.fixture
def file(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(make_recipe(str(tmp_path / "out")).model_dump(mode="json")))
    return written


def test_a_plan_says_what_a_run_takes_and_runs_nothing(run, file: Path, tmp_path: Path):
    code, out, err = run(file, "--plan", "--memory", "4GB", "--device", "cpu", "--json", tmp_path / "p.json")
    assert (code, err) == (0, "")
    for words in (
        "ur5e",
        "bimanual_panda",
        "optimizer",
        "activations",
        "epoch: 42 samples",
        "TFLOP",
        ": fits",
    ):
        assert words in out
    tree = json.loads((tmp_path / "p.json").read_text())
    assert tree["fits"] is True
    assert tree["limit"] == 4_000_000_000
    assert sum(tree["memory"].values()) == tree["total"]
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_ends_with_2_and_a_way_out(run, file: Path):
    changes = ("adaptation={kind: head_only}", "train.checkpointing=true", "train.precision=bf16")
    options = [word for change in (*changes, "train.batch_size=64") for word in ("--set", change)]
    code, out, err = run(file, "--plan", "--device", "cuda", "--memory", "560MB", *options)
    assert code == 2
    assert "does not fit" in out
    assert err.count("\n") == 1
    assert "vla-adapt: one process needs" in err
    assert "there are 560 MB; --set train.accumulate=4 needs 5" in err


def test_a_plan_follows_the_launch(run, file: Path):
    options = ("--plan", "--device", "cpu", "--memory", "4GB", "--launch")
    code, out, err = run(file, *options, LAUNCH / "cpu-2-fsdp.yaml", "--processes", 4)
    assert (code, err) == (0, "")
    for words in (
        "gathered",
        "2 samples at once",
        "4 process(es) (FSDP2)",
        "before its first step each process loads the whole",
    ):
        assert words in out


def test_mistakes_are_one_line(run, file: Path):
    for options, words in (
        (("--plan", "--memory", "much"), "wanted a size such as 24GB"),
        (("--plan", "--device", "tpu"), "wanted auto, cpu or cuda"),
        (("--memory", "4GB"), "go with --plan"),
        (("--launch", LAUNCH / "fsdp.yaml"), "go with --plan"),
        (("--plan", "--launch", "fsdp.yml"), "no launch config of Accelerate"),
        (
            ("--plan", "--launch", LAUNCH / "cpu-2-fsdp.yaml", "--set", "train.compile=true"),
            "on FSDP2: train.c",
        ),
        (("--plan", "--set", "train.batchsize=3"), "did you mean 'batch_size'"),
    ):
        code, _, err = run(file, *options)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1


def test_without_plan_it_trains(run, file: Path, tmp_path: Path):
    code, _, err = run(file, "--set", "train.steps=1")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "bundles" / "ur5e" / "bundle.json").is_file()
