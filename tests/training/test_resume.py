"""Saving and restoring a run: what is there is used, or refused with words; nothing there is ever lost."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_adapt.recipe import Recipe
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.resume import CheckpointKeeper, Resumed
from vla_adapt.training.run_state import RunState

ORDER = {"sample": 24, "mixture": "0123456789abcdef"}
MakeRecipe = Callable[..., Recipe]


def keeper(recipe: Recipe, fresh: bool = False) -> CheckpointKeeper:
    made = CheckpointKeeper(Ranks(Accelerator(cpu=True)), Path(recipe.output), recipe)
    made.find(fresh)
    return made


def make(seed: int, width: int = 8) -> RunState:
    torch.manual_seed(seed)
    module = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(module.parameters())
    return RunState(module, optimizer, LambdaLR(optimizer, lambda step: 1.0))


def save(keeper: CheckpointKeeper, step: int, seed: int = 0, **options: float) -> RunState:
    state = make(seed)
    keeper.save(step, state, ORDER, torch.full((2, 3), 1 / 3, dtype=torch.float64), **options)
    return state


def weight(state: RunState) -> torch.Tensor:
    return state.module.weight  # type: ignore[return-value]


def test_nothing_there(make_recipe: MakeRecipe, tmp_path: Path):
    found = keeper(make_recipe(str(tmp_path)))
    assert found.restore(make(0)) == Resumed()
    assert found.where() == "there is no checkpoint yet"
    found.finish()


def test_comes_back(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    first = save(keeper(recipe), 3)
    found = keeper(recipe)
    second = make(1)
    point = found.restore(second)
    assert (point.step, point.order, point.notes) == (3, ORDER, [])
    assert point.sums is not None
    assert torch.equal(point.sums, torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert torch.equal(weight(first), weight(second))
    assert found.where() == (
        f"the last checkpoint is {tmp_path}/checkpoints/step-00000003; the same command goes on from there"
    )
    names = {file.name for file in (tmp_path / "checkpoints" / "step-00000003").iterdir()}
    assert names == {
        "manifest.json", "trained.safetensors", "optimizer.pt", "rng-rank00000.pt", "progress.json",
        "recipe.yaml", "environment.json",
    }  # fmt: skip


def test_a_finished_run_keeps_the_best_only(make_recipe: MakeRecipe, tmp_path: Path):
    kept = keeper(make_recipe(str(tmp_path)))
    for step, metric in ((2, 1.0), (4, 3.0), (6, 2.0)):
        save(kept, step, seed=step, metric=metric)
    assert kept.folder.best() == (2, 1.0)
    kept.finish()
    assert kept.folder.steps() == [2]
    state = make(9)
    state.read_weights(kept.folder.path(2))
    assert torch.equal(weight(state), weight(make(2)))


def test_a_kill_before_its_publication_does_not_hide_the_best(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path), train={"steps": 9, "batch_size": 8, "keep": 1})
    before = keeper(recipe)
    save(before, 2, metric=2.0)
    save(before, 4, metric=1.0)
    (before.folder.root / "best").write_text(json.dumps({"step": 2, "metric": 2.0}))
    after = keeper(recipe)
    assert after.restore(make(0)).step == 4
    assert after.folder.best() == (4, 1.0)
    save(after, 6, metric=3.0)
    assert after.folder.steps() == [6, 4]


def test_a_best_one_later_than_where_the_run_goes_on_is_forgotten(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    before = keeper(recipe)
    save(before, 2, metric=2.0)
    save(before, 4, metric=1.0)
    (before.folder.path(4) / "optimizer.pt").unlink()
    after = keeper(recipe)
    assert after.restore(make(0)).step == 2
    assert after.folder.best() == (2, 2.0)


def test_the_best_comes_back_or_what_is_wrong_with_it(make_recipe: MakeRecipe, tmp_path: Path):
    kept = keeper(make_recipe(str(tmp_path)))
    save(kept, 2, seed=2, metric=1.0)
    last = save(kept, 4, seed=4, metric=3.0)
    assert kept.restore_best(2, last) == ""
    assert torch.equal(weight(last), weight(make(2)))
    (kept.folder.path(2) / "trained.safetensors").unlink()
    assert kept.restore_best(2, make(9)) == "the best, of step 2, is lost: trained.safetensors is missing"


def test_sums_of_another_number_of_ranks_go_to_the_first(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    save(keeper(recipe), 3)
    here = keeper(recipe)
    file = here.folder.path(3) / "progress.json"
    progress = json.loads(file.read_text())
    progress["sums"] = [[[1.0, 2.0]], [[10.0, 20.0]]]
    file.write_text(json.dumps(progress))
    sums = here.restore(make(0)).sums
    assert sums is not None
    assert sums.tolist() == [[11.0, 22.0]]


@pytest.mark.parametrize("lost", ["optimizer.pt", "trained.safetensors", "rng-rank00000.pt", "progress.json"])
def test_falls_back_to_the_one_before_and_says_so(make_recipe: MakeRecipe, tmp_path: Path, lost: str):
    recipe = make_recipe(str(tmp_path))
    saved = keeper(recipe)
    first = save(saved, 3, seed=3)
    save(saved, 6, seed=6)
    (saved.folder.path(6) / lost).unlink()
    found, state = keeper(recipe), make(1)
    point = found.restore(state)
    assert point.step == 3
    assert "step-00000003" in found.where()
    assert point.notes == [f"passed over a damaged checkpoint, step-00000006: {lost} is missing"]
    assert torch.equal(weight(state), weight(first))


def test_none_whole_is_an_error_until_fresh(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    saved = keeper(recipe)
    for step in (3, 6):
        save(saved, step)
        os.truncate(saved.folder.path(step) / "optimizer.pt", 10)
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* is whole: step-00000006: .*; step-00000003: .*--fresh"
    ):
        keeper(recipe)
    assert saved.folder.steps() == [6, 3], "nothing is removed"
    assert keeper(recipe, fresh=True).restore(make(0)) == Resumed()
    assert saved.folder.steps() == []


def test_one_of_another_recipe_is_refused_and_stays(make_recipe: MakeRecipe, tmp_path: Path):
    save(keeper(make_recipe(str(tmp_path))), 3)
    other = make_recipe(str(tmp_path), seed=1, train={"steps": 5, "batch_size": 8})
    with pytest.raises(
        ValueError, match=r"is of another recipe, which differs in seed, train\.steps; .*--fresh"
    ):
        keeper(other)
    assert keeper(make_recipe(str(tmp_path))).last_step == 3


def test_keys_that_change_no_update_may_change(make_recipe: MakeRecipe, tmp_path: Path):
    save(keeper(make_recipe(str(tmp_path))), 3)
    train = {
        "steps": 3, "batch_size": 8, "log_every": 2, "workers": 1, "accumulate": 2, "keep": 9,
        "save_every": 7, "deterministic": True, "log_samples": True,
    }  # fmt: skip
    assert keeper(make_recipe(str(tmp_path), train=train)).last_step == 3


def test_one_written_before_a_key_was_added_is_still_of_this_recipe(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    save(keeper(recipe), 3)
    here = CheckpointKeeper(Ranks(Accelerator(cpu=True)), tmp_path, recipe)
    file = here.folder.path(3) / "recipe.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "patience_s" not in line))
    here._refuse_another_recipe(3)


def test_other_software_is_said(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = make_recipe(str(tmp_path))
    save(keeper(recipe), 3)
    python = platform.python_version()
    monkeypatch.setattr("platform.python_version", lambda: "3.99")
    (note,) = keeper(recipe).restore(make(0)).notes
    assert note.startswith(f"changed since the checkpoint: python {python} -> 3.99")


def test_diverged_weights_leave_the_last_good_checkpoint(make_recipe: MakeRecipe, tmp_path: Path):
    kept = keeper(make_recipe(str(tmp_path)))
    save(kept, 3)
    state = make(0)
    with torch.no_grad():
        weight(state)[0, 0] = float("nan")
    with pytest.raises(ValueError, match="cannot keep a checkpoint of step 4: weight is not finite"):
        kept.save(4, state, ORDER, torch.zeros(1))
    assert kept.folder.newest_whole() == (3, [])
    assert kept.where().startswith("the last checkpoint is")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or, where mounting is forbidden, files of at most that size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))  # Python ignores SIGXFSZ
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(make_recipe: MakeRecipe, tmp_path: Path):
    with small_disk(tmp_path / "disk") as disk:
        recipe = make_recipe(str(disk))
        kept = keeper(recipe)
        small = save(kept, 3)
        large = make(0, width=512)
        with pytest.raises(ValueError, match=r"cannot keep a checkpoint of step 4: .*bytes are free"):
            kept.save(4, large, ORDER, torch.zeros(1))
        assert not list((disk / "checkpoints").glob(".*")), "what was half written is gone: the space is free"
        again = keeper(recipe)
        state = make(1)
        assert again.restore(state).step == 3
        assert torch.equal(weight(state), weight(small))
        save(again, 5)
