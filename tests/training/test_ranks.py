"""Processes that agree: on results, failures and signals."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from accelerate import Accelerator

from vla_adapt.recipe import Recipe
from vla_adapt.training.ranks import Ranks


def fail(error: Exception) -> None:
    raise error


def test_a_single_process_agrees_with_itself():
    ranks = Ranks(Accelerator(cpu=True))
    assert ranks.is_main
    assert ranks.everyone({"a": 1}) == [{"a": 1}]
    assert ranks.attempt(lambda: 3) == ranks.on_main(lambda: 3) == ranks.main_first(lambda: 3) == 3
    assert ranks.largest(5, timedelta(seconds=1)) == 5
    with pytest.raises(ValueError, match=r"^bad data$"):
        ranks.main_first(lambda: fail(ValueError("bad data")))
    with pytest.raises(ValueError, match="No space"):
        ranks.attempt(lambda: fail(OSError(28, "No space left on device")))
    with pytest.raises(KeyError):
        ranks.attempt(lambda: fail(KeyError("a bug is no failure to agree on")))


AGREE = """
from datetime import timedelta
from vla_adapt.training import loop
from vla_adapt.training.ranks import Ranks

def check(run, recipe, fresh):
    ranks, rank = run.ranks, run.ranks.rank
    assert ranks.everyone(rank * 10) == [0, 10]
    assert ranks.largest([0, 15][rank], timedelta(seconds=10)) == 15
    order = []
    assert ranks.main_first(lambda: order.append(rank) or rank) == rank
    assert ranks.on_main(lambda: f"made by {rank}") == "made by 0"
    def only_one():
        if rank == 1:
            raise ValueError("cannot read /data")
    try:
        ranks.attempt(only_one)
    except ValueError as error:
        assert str(error) == "rank 1: cannot read /data"
    else:
        raise AssertionError("not told")
    print("agreed")

def instead(rank):
    loop._train = check
"""


@pytest.mark.slow
def test_two_processes_agree(make_recipe: Callable[..., Recipe], launcher, tmp_path: Path):
    (tmp_path / "agree.py").write_text(AGREE)
    launch = launcher(make_recipe(str(tmp_path / "r")), before=f"{tmp_path / 'agree.py'}:instead")
    assert launch.codes == [0, 0], launch.said
    assert all("agreed" in said for said in launch.said)
