"""Processes that die, freeze or fail: the others end soon, and one of them names the culprit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from accelerate import Accelerator
from torch.distributed import HashStore  # type: ignore[attr-defined]

from vla_adapt.recipe import Recipe
from vla_adapt.training import pulse as pulses
from vla_adapt.training.checkpoint_folder import CheckpointFolder
from vla_adapt.training.pulse import Pulse, RankLost
from vla_adapt.training.ranks import Ranks

MakeRecipe = Callable[..., Recipe]


def pair(store: HashStore) -> list[Pulse]:
    """Two pulses in this process, with no thread running."""
    made = []
    for rank in range(2):
        ranks = Ranks(Accelerator(cpu=True))
        ranks.rank, ranks.world = rank, 2
        made.append(Pulse(ranks, lambda: "WHERE", store))
    for one in made:
        one._beat()
    for one in made:
        one._look()
    return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread brings news to these pairs; the processes of launches are patient as ever."""
    monkeypatch.setattr(pulses, "EXPLAIN_S", 0.3)


def test_all_well():
    first, second = pair(HashStore())
    assert first.fates() == second.fates() == {}


def test_last_words_reach_the_others():
    first, second = pair(HashStore())
    first.note("step 7")
    first._mine.words = "the loss is nan"
    first._beat()
    second._look()
    lost = second.explain(RuntimeError("Connection closed by peer"))
    assert lost is not None
    assert str(lost).startswith("rank 0 (process ")
    assert str(lost).endswith(", at step 7) ended: the loss is nan; WHERE")
    assert lost.speaks, "the only one left"


def test_a_dead_process_is_known_at_once():
    first, second = pair(HashStore())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first._mine.pid, first._mine.born = child.pid, psutil.Process(child.pid).create_time()
    first._beat()
    second._look()
    assert second.fates() == {}
    child.kill()
    started = time.monotonic()
    lost = second.explain(RuntimeError("Connection closed by peer"))
    assert lost is not None
    assert " died; WHERE" in str(lost)
    assert time.monotonic() - started < 2
    child.wait()
    assert second.fates(), "also when its parent has taken notice"


def test_a_number_that_another_process_got_is_not_it():
    first, second = pair(HashStore())
    first._mine.born -= 1000
    first._beat()
    second._look()
    assert "died" in second.fates()[0]


def test_silence_is_not_taken_for_life(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pulses, "SILENT_S", 0.05)
    first, second = pair(HashStore())
    time.sleep(0.1)
    second._look()
    assert "has given no sign of life for 0 s" in second.fates()[0]
    first._beat()
    second._look()
    assert second.fates() == {}


def test_a_store_that_does_not_answer_is_its_holder_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pulses, "SILENT_S", 0.05)
    _, second = pair(HashStore())
    time.sleep(0.1)
    assert second.fates().keys() == {0}
    assert second.fates()[0].startswith("rank 0 (process ")
    assert "holds the processes' store, which has given no sign" in second.fates()[0]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert second.fates()[0].startswith("the launcher holds the processes' store")


def test_a_failure_of_one_s_own_is_nobody_else_s():
    first, _ = pair(HashStore())
    assert first.explain(RuntimeError("a bug")) is None
    lost = first.explain(RuntimeError("Timed out waiting 1800000ms for recv operation to complete"))
    assert isinstance(lost, RankLost)
    assert (
        str(lost) == "a process kept the others waiting for too long: rank 0 at start, rank 1 at start; WHERE"
    )


SOON = {"SILENT_S": 3.0, "GRACE_S": 1.0, "STORE_S": 1.0}


def run(make_recipe: MakeRecipe, tmp_path: Path, name: str) -> tuple[Recipe, Path]:
    """A long recipe, and the file that shows that it trains."""
    train = {"steps": 2000, "batch_size": 4, "save_every": 1}
    folder = tmp_path / name
    return make_recipe(str(folder), train=train), folder / "checkpoints" / "latest"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_by_the_other(make_recipe: MakeRecipe, launcher, tmp_path: Path, victim: int):
    recipe, wait_for = run(make_recipe, tmp_path, "r")
    launch = launcher(recipe, signal_at=0.2, wait_for=str(wait_for), victims=[victim])
    assert launch.codes[victim] == -signal.SIGKILL
    assert launch.codes[1 - victim] == 1
    said = launch.said[1 - victim].splitlines()[-1]
    assert f"RankLost: rank {victim} (process " in said
    assert ") died; the last checkpoint is " in said
    assert said.endswith("; the same command goes on from there")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_is_named_by_the_other(make_recipe: MakeRecipe, launcher, tmp_path: Path, victim: int):
    """Rank 0 holds the key-value store here: that is frozen with it."""
    recipe, wait_for = run(make_recipe, tmp_path, "r")
    launch = launcher(
        recipe, signal_at=0.2, wait_for=str(wait_for), victims=[victim], signal=signal.SIGSTOP, pulse=SOON
    )
    assert launch.codes[1 - victim] == pulses.EXIT_LOST, launch.said
    said = launch.said[1 - victim].splitlines()[-1]
    assert said.startswith(f"finetune: rank {victim} (process ")
    assert "has given no sign of life for " in said
    assert launch.seconds < 60


FAIL = """
from vla_adapt.training import loop

def on_rank_1(rank):
    genuine = loop._check_finite
    def check(output, *rest):
        if rank == 1 and rest[-1] == 2:
            output = output | {"loss": output["loss"] * float("nan")}
        genuine(output, *rest)
    loop._check_finite = check
"""


@pytest.mark.slow
def test_what_one_rank_failed_with_is_told_by_the_other(make_recipe: MakeRecipe, launcher, tmp_path: Path):
    (tmp_path / "fail.py").write_text(FAIL)
    recipe, _ = run(make_recipe, tmp_path, "r")
    launch = launcher(recipe, before=f"{tmp_path / 'fail.py'}:on_rank_1")
    assert launch.codes == [1, 1]
    assert "ValueError: the loss is nan at step 2" in launch.said[1]
    assert "RankLost: rank 1 (process " in launch.said[0]
    assert ", at step 3) ended: the loss is nan at step 2" in launch.said[0]
    assert "step-00000002; the same command goes on" in launch.said[0]
    assert CheckpointFolder(tmp_path / "r", keep=2).newest_whole() == (2, [])
