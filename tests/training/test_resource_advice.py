"""Out of memory or disk: words with numbers of the recipe."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.resource_advice import explained, memory_advice

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def test_the_smallest_change_that_helps_comes_first(make_recipe: Callable[..., Recipe]):
    recipe = make_recipe("r", train={"batch_size": 24, "accumulate": 2})
    said = memory_advice(ERROR, recipe, world=2)
    assert said == (
        "out of memory with 6 samples at once on each process (CUDA out of memory): "
        "train.accumulate=4 takes 3 at once, to the same end, or more processes than 2 share the batch, or "
        "train.checkpointing=true keeps few activations, to the same end, in more time, or "
        "train.precision=bf16 halves weights and activations"
    )


def test_what_is_done_already_or_saves_nothing_is_not_advised(make_recipe: Callable[..., Recipe]):
    train = {"batch_size": 2, "precision": "bf16"}
    said = memory_advice(ERROR, make_recipe("r", train={**train, "checkpointing": True}), world=1)
    assert "checkpointing" not in said
    kept = {"policy": {"head": {"kind": "readout"}}, "adaptation": {"kind": "frozen"}}
    assert "checkpointing" not in memory_advice(ERROR, make_recipe("r", train=train, **kept), world=1)
    uncached = {**kept, "adaptation": {"kind": "frozen", "cache": False}}
    assert "checkpointing" in memory_advice(ERROR, make_recipe("r", train=train, **uncached), world=1)


def test_single_samples_cannot_be_split(make_recipe: Callable[..., Recipe]):
    recipe = make_recipe("r", train={"batch_size": 2, "precision": "bf16"}, adaptation={"kind": "full"})
    said = memory_advice(ERROR, recipe, world=2)
    assert "accumulate" not in said
    assert "bf16" not in said
    assert said.endswith("adaptation.kind=lora keeps optimizer state for adapters only")


def test_a_run_out_of_memory_says_where_it_goes_on(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train = {"steps": 4, "batch_size": 8, "save_every": 1}
    genuine = loop._check_finite

    def run_out(*arguments: Any) -> None:
        if arguments[-1] == 2:
            raise ERROR
        genuine(*arguments)

    monkeypatch.setattr(loop, "_check_finite", run_out)
    with pytest.raises(
        ValueError, match=r"train\.accumulate=2 takes 4 at once.*the last checkpoint is .*step-00000002"
    ):
        loop.train(make_recipe(str(tmp_path / "r"), train=train))
    monkeypatch.setattr(loop, "_check_finite", genuine)
    loop.train(make_recipe(str(tmp_path / "r"), train=train | {"accumulate": 2}))
    assert (tmp_path / "r" / "summary.json").exists(), "the advice works"


def test_a_full_disk_is_named_and_other_errors_pass(make_recipe: Callable[..., Recipe]):
    recipe = make_recipe("r")
    with (
        pytest.raises(ValueError, match=r"cannot write /run/metrics.jsonl: No space left on device; WHERE"),
        explained(recipe, 1, lambda: "WHERE"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl")
    with pytest.raises(FileNotFoundError), explained(recipe, 1, lambda: "WHERE"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/data")
