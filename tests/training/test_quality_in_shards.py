"""Validation, average, balance and the choice of the best state: the same where the learner is in shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop

FSDP = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.slow
def test_the_numbers_of_one_process(make_recipe: Callable[..., Recipe], launcher, tmp_path: Path):
    method = {"kind": "lora", "rank": 3, "targets": "all_linear", "shared": {"rank": 2}}
    train = {"steps": 6, "batch_size": 8, "log_every": 1, "ema": 0.5, "balance": "uncertainty"}
    make = lambda name: make_recipe(  # noqa: E731
        str(tmp_path / name), adaptation=method, train=train, validation={"every": 2}
    )
    one = rows(loop.train(make("one")))
    launch = launcher(make("two"), environment=FSDP)
    assert launch.codes == [0, 0], launch.said
    two = rows(tmp_path / "two")
    assert len(one) == len(two) == 2 * 6 + 2 * 3
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"seconds", "samples_per_s"}:
            wanted = pytest.approx(left[key], abs=1e-4) if isinstance(left[key], float) else left[key]
            assert right[key] == wanted, (left["step"], key)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
