"""The command line: what people type, what they read, mistakes in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer

from vla_adapt import cli, cli_data


def vla_adapt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command."""
    monkeypatch.setattr("sys.argv", ["vla-adapt", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *words: vla_adapt(capsys, monkeypatch, *words)


def test_robots(run):
    code, out, _ = run("robots")
    assert code == 0
    assert all(name in out for name in ("franka_panda", "ur5e", "bimanual_panda", "mobile_panda", "widowx"))
    assert run("robots", "list")[1] == out
    code, out, _ = run("robots", "show", "mobile_panda")
    assert code == 0
    assert "base_velocity.wz" in out


def test_unknown_robot_is_one_line(run):
    code, _, err = run("robots", "show", "frank_panda")
    assert code == 2
    assert err.count("\n") == 1
    assert "did you mean 'franka_panda'" in err


def verbs(group: Any, *before: str) -> list[tuple[str, ...]]:
    """All that can be typed after `vla-adapt`, groups too."""
    found = [before] if before else []
    for name, command in getattr(group, "commands", {}).items():
        found += verbs(command, *before, name)
    return found


@pytest.mark.parametrize("words", verbs(typer.main.get_command(cli.app)), ids=" ".join)
def test_every_verb_helps_with_an_example(run, words: tuple[str, ...]):
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert f"vla-adapt {words[0]}" in " ".join(out.partition("xample")[2].split())


def test_data_index_and_stats(run, two_robot_data: dict[str, Path], tmp_path: Path):
    code, out, _ = run("data", "index", two_robot_data["ur5e"])
    assert (code, "3 episodes, 21 steps, ur5e" in out) == (0, True)
    file = tmp_path / "s.json"
    code, out, _ = run("data", "stats", two_robot_data["ur5e"], "--json", file)
    assert (code, "right_ee_position_delta.x" in out, "right_ee_position.x" in out) == (0, True, True)
    tree = json.loads(file.read_text())["ur5e"]
    assert (tree["action"]["count"], tree["proprio"]["count"]) == (21, 21)
    code, _, err = run("data", "stats", two_robot_data["ur5e"], "--on-error", "ignore")
    assert (code, "wanted 'error' or 'skip'" in err) == (2, True)


def test_data_stats_skips_damage_where_the_mixture_says_so(
    run, two_robot_data: dict[str, Path], tmp_path: Path
):
    damaged = Path(shutil.copytree(two_robot_data["ur5e"], tmp_path / "ur5e_fake" / "1.0.0"))
    (shard,) = damaged.glob("*-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-100])
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"sources: [{{path: {damaged}, on_error: skip, held_out_split: ''}}]")
    with pytest.warns(UserWarning, match="truncated"):
        code, out, _ = run("data", "stats", mixture)
    assert (code, "ur5e: action, 14 steps" in out) == (0, True)
    code, _, err = run("data", "stats", mixture, "--on-error", "error")
    assert (code, "file is truncated" in err) == (2, True)


def test_data_inspect_writes_a_page(run, two_robot_data: dict[str, Path], tmp_path: Path):
    page = tmp_path / "page.html"
    code, out, _ = run("data", "inspect", two_robot_data["ur5e"], "--episode", 1, "--out", page)
    assert (code, "7 steps" in out, str(page) in out) == (0, True, True)
    assert "right_ee_position_delta.x" in page.read_text()
    code, _, err = run("data", "inspect", two_robot_data["ur5e"], "--episode", 9)
    assert (code, "it has 3; count from 0" in err) == (2, True)


def test_data_doctor_prints_findings_and_fails_on_errors(
    run, two_robot_data: dict[str, Path], tmp_path: Path
):
    file = tmp_path / "d.json"
    damaged = Path(shutil.copytree(two_robot_data["ur5e"], tmp_path / "ur5e_fake" / "1.0.0"))
    shard = next(damaged.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = run("data", "doctor", damaged, "--json", file)
    assert (code, "unreadable" in out, shard.name in file.read_text()) == (1, True, True)
    assert json.loads(file.read_text())["counts"]["error"] == 1
    code, out, _ = run("data", "doctor", two_robot_data["ur5e"], "--split", "train", "--split", "val")
    assert (code, "examined 3 of 3 episodes" in out, "examined 1 of 1 episodes" in out) == (0, True, True)
    assert "0 errors" in out
    code, _, err = run("data", "doctor", tmp_path / "gone")
    assert (code, "no file, folder, recipe or mixture" in err, err.count("\n")) == (2, True, 1)


def test_data_doctor_takes_recipes_and_mixtures(run, two_robot_data: dict[str, Path], tmp_path: Path):
    recipe, mixture, folder = tmp_path / "r.yaml", tmp_path / "m.yaml", tmp_path / "all"
    sources = "".join(f"\n  - {{path: {path}}}" for path in two_robot_data.values())
    recipe.write_text(f"name: r\noutput: {tmp_path / 'o'}\nmixture:{sources}\n")
    code, out, _ = run("data", "doctor", recipe, "--images", 0)
    assert (code, out.count("examined 3 of 3"), out.count("examined 1 of 1")) == (0, 2, 2)
    mixture.write_text(f"sources:{sources}\nbalance: size\n")
    assert run("data", "doctor", mixture, "--images", 0)[:2] == (code, out)
    folder.mkdir()
    (folder / "bridge_orig").symlink_to(two_robot_data["ur5e"])
    code, _, err = run("data", "doctor", "bridge")
    assert (code, "pass --folder" in err) == (2, True)
    code, out, _ = run("data", "doctor", "bridge", "--folder", folder)
    assert (code, "cannot be opened" in out) == (1, True)  # Bridge's fields are not there
    code, _, err = run("data", "doctor", recipe, "--embodiment", "ur5e")
    assert (code, "--embodiment goes with one dataset" in err) == (2, True)


@pytest.fixture
def recipe_file(two_robot_data: dict[str, Path], tmp_path: Path) -> Path:
    """A recipe over both robots, that of the second damaged at its end and left out."""
    damaged = Path(shutil.copytree(two_robot_data["bimanual_panda"], tmp_path / "damaged" / "1.0.0"))
    (shard,) = damaged.glob("*-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-100])
    file = tmp_path / "r.yaml"
    file.write_text(
        f"name: r\noutput: {tmp_path / 'o'}\nmixture:\n  - {{path: {two_robot_data['ur5e']}}}\n"
        f"  - {{path: {damaged}, on_error: skip, held_out_split: ''}}\n"
    )
    return file


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_data_index_takes_recipes_and_mixtures(run, recipe_file: Path, two_robot_data, tmp_path: Path):
    code, out, _ = run("data", "index", recipe_file)
    told = [line.split(":") for line in out.splitlines()]
    assert (code, [name for name, _ in told]) == (
        0, ["ur5e_fake [train]", "ur5e_fake [val]", "bimanual_panda_fake [train]"]
    )  # fmt: skip
    assert [int(text.split()[0]) for _, text in told] == [3, 1, 2]
    code, _, err = run("data", "index", recipe_file, "--on-error", "error")
    assert (code, "file is truncated" in err) == (2, True)
    code, _, err = run("data", "index", recipe_file, "--split", "val")
    assert (code, "--split goes with one dataset" in err) == (2, True)
    code, out, _ = run("data", "index", two_robot_data["ur5e"], "--split", "train", "--split", "val")
    assert (code, out.count("ur5e_fake [")) == (0, 2)
    (tmp_path / "bridge_orig").symlink_to(two_robot_data["ur5e"])
    for verb in ("index", "inspect", "stats"):
        code, _, err = run("data", verb, "bridge", "--folder", tmp_path)
        assert (code, "ur5e_fake: no field" in err) == (2, True)  # Bridge's fields are not there


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_data_inspect_of_a_recipe_writes_a_page_of_each_dataset(run, recipe_file: Path, tmp_path: Path):
    code, out, _ = run("data", "inspect", recipe_file, "--episode", 1, "--out", tmp_path / "pages")
    pages = sorted(page.name for page in (tmp_path / "pages").iterdir())
    assert (code, pages) == (0, ["bimanual_panda_fake_episode_1.html", "ur5e_fake_episode_1.html"])
    assert out.count("7 steps") == 2
    code, _, err = run("data", "inspect", recipe_file, "--episode", 2)
    assert (code, "damaged/1.0.0 [train]: it has 2; count from 0" in err) == (2, True)


def test_pages_of_datasets_of_one_name_differ(run, two_robot_data: dict[str, Path], tmp_path: Path):
    mixture = tmp_path / "m.yaml"
    mixture.write_text(f"sources: [{{path: {two_robot_data['ur5e']}}}, {{path: {two_robot_data['ur5e']}}}]")
    assert run("data", "inspect", mixture, "--out", tmp_path / "pages")[0] == 0
    pages = sorted(page.name for page in (tmp_path / "pages").iterdir())
    assert pages == ["ur5e_fake_2_episode_0.html", "ur5e_fake_episode_0.html"]


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a_2", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
        (["a_2", "a", "a", "a"], ["a_2", "a", "a_3", "a_4"]),
    ],
)
def test_numbered_names_are_nobodys(names: list[str], given: list[str]):
    assert cli_data._different(names) == given


@pytest.mark.parametrize("verb", ["stats", "doctor"])
def test_where_json_cannot_go_is_told_before_the_work(run, verb: str, tmp_path: Path):
    for file in (tmp_path / "gone" / "s.json", tmp_path):
        code, out, err = run("data", verb, tmp_path / "no dataset", "--json", file)
        assert (code, out, f"--json {file}: wanted a file in a folder that is there" in err) == (2, "", True)


def test_data_convert(run, two_robot_data: dict[str, Path], tmp_path: Path):
    code, _, err = run("data", "convert", two_robot_data["ur5e"], tmp_path / "out", "--to", "lerobto")
    assert (code, "did you mean 'lerobot'?" in err) == (2, True)
    code, out, _ = run("data", "convert", two_robot_data["ur5e"], tmp_path / "out", "--to", "lerobot")
    assert (code, "wrote 4 episodes" in out, "(lerobot): train 3, val 1" in out) == (0, True, True)
    assert "3 episodes, 21 steps, ur5e" in run("data", "index", tmp_path / "out")[1]
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
        file["mask/half"] = np.array([b"demo_0"])
    entry = tmp_path / "entry.yaml"
    entry.write_text("{embodiment: ur5e, cameras: {}, action: [actions], state: [], instruction_text: lift}")
    words = ("data", "convert", tmp_path / "lift.hdf5", tmp_path / "rlds", "--entry", entry, "--to", "rlds")
    with pytest.warns(UserWarning, match="left behind in rlds: field 'actions': 64-bit floats"):
        code, out, _ = run(*words, "--split", "half")
    assert (code, out.splitlines()[1:]) == (0, ["left behind: field 'actions': 64-bit floats became 32-bit"])


def test_tables_and_report(run, finished_run: Path, tmp_path: Path):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    code, out, _ = run("evaluate", "--run", folder)
    assert (code, "predict-the-mean" in out) == (0, True)
    code, out, _ = run("evaluate", "--probe", "--run", folder, "--windows", 8, "--folds", 2)
    assert (code, "patches" in out, "hidden" in out, "50.0 %" in out) == (0, True, True, True)
    assert "Held-out action error" in out
    (folder / "closed_loop.json").write_text(json.dumps([
        {"robot": "ur5e", "label": "LoRA", "episodes": 4, "successes": 3, "seed": 1, "steps": [9]},
    ]))  # fmt: skip
    code, _, _ = run("report", folder, "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert code == 0
    assert page.count("data:image/png;base64") >= 5
    assert "3/4 = 75 % [30, 95]" in page
    assert "bimanual_panda" in page
    assert "Can the robot be told from the features?" in page
    assert "16 windows of 8 episodes" in page


def test_probe_mistakes(run, finished_run: Path):
    code, _, err = run("evaluate", "--probe", "--run", finished_run, "--windows", 8)
    assert (code, "5 folds" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run("evaluate", "--probe", "--closed-loop", "--run", finished_run)
    assert (code, "one after the other" in err) == (2, True)
    code, _, err = run("evaluate", "--probe", "--run", finished_run, "--device", "gpu")
    assert (code, "device 'gpu' cannot be used here" in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--run", "r", "--windows", "9"], "--windows has no effect with --run alone"),
        (["--run", "r", "--probe", "--episodes", "9"], "--episodes has no effect with --probe"),
        (["--closed-loop", "--run", "r"], "--run has no effect with --closed-loop"),
        (["--closed-loop", "--token-file", "gone"], "token file gone: cannot be read"),
        (["--closed-loop", "--append"], "--append adds to the file of --out; name it"),
    ],
)
def test_evaluate_reads_every_option_that_it_takes(run, words: list[str], told: str):
    code, _, err = run("evaluate", *words)
    assert (code, told in err, err.count("\n")) == (2, True, 1)


def test_an_extra_that_is_not_installed_is_named(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("uvicorn", "vla_adapt.serving.server", "vla_adapt.serving.lingering"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", "--adapters", tmp_path)
    assert (code, err) == (2, "vla-adapt: uvicorn is not installed; pip install 'vla_adapt[serve]'\n")


def test_a_run_that_held_nothing_out_says_so(run, tmp_path: Path):
    (tmp_path / "open_loop.json").write_text("[]")
    code, _, err = run("evaluate", "--run", tmp_path)
    assert (code, "held no episodes out" in err, err.count("\n")) == (2, True, 1)


def test_what_the_system_refuses_is_one_line(run, finished_run: Path, tmp_path: Path):
    code, _, err = run("report", finished_run, "--out", tmp_path)
    assert (code, str(tmp_path) in err, err.count("\n")) == (2, True, 1)


def test_missing_things_are_named(run, tmp_path: Path):
    code, _, err = run("report", tmp_path, "--out", tmp_path / "r.html")
    assert (code, "holds no run" in err) == (2, True)
    code, _, err = run("evaluate")
    assert (code, "--closed-loop" in err) == (2, True)
    code, _, err = run("evaluate", "--probe", "--run", tmp_path)
    assert (code, "no recipe.yaml" in err) == (2, True)
    code, _, err = run("adapters", "list", tmp_path)
    assert (code, "no bundle in" in err) == (2, True)
