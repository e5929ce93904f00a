"""Several passes, one step: the gradients of one big batch, on one process and on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.micro_batches import check_split, in_micro_batches

MakeRecipe = Callable[..., Recipe]


def test_parts_are_equal_and_in_order():
    assert in_micro_batches(list, 3, range(6)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("batch", "world", "passes", "message"),
    [
        (8, 3, 1, "train.batch_size 8 cannot be split over 3 processes evenly"),
        (12, 2, 4, r"into train.accumulate 4 passes on each of 2 processes; .* divides 6"),
    ],
)
def test_uneven_parts_are_refused(batch: int, world: int, passes: int, message: str):
    check_split(24, 2, 4)
    with pytest.raises(ValueError, match=message):
        check_split(batch, world, passes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{file.stem}/{name}": tensor
        for file in sorted(run.glob("bundles/*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, two: Path) -> None:
    left, right = weights(one), weights(two)
    assert left.keys() == right.keys()
    assert len(left) > 20
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-5), name


# Plain gradient descent would show a wrong factor; Adam hides it, but for the clipping and its epsilon.
TRAIN = {
    "steps": 4, "batch_size": 8, "log_every": 1, "log_samples": True,
    "optimizer": {"clip_norm": 1e-3, "warmup_steps": 0, "learning_rate": 1e-3},
}  # fmt: skip


def test_four_passes_equal_one(make_recipe: MakeRecipe, tmp_path: Path):
    runs = [
        loop.train(make_recipe(str(tmp_path / str(passes)), train=TRAIN | {"accumulate": passes}))
        for passes in (1, 4)
    ]
    assert_same(*runs)
    one, two = ((run / "samples" / "rank0.tsv").read_text() for run in runs)
    assert one == two


@pytest.mark.slow
def test_two_processes_with_passes_equal_one_big_batch(make_recipe: MakeRecipe, launcher, tmp_path: Path):
    """Four passes of one sample on each rank; a robot that is in no last pass must be synchronized too."""
    one = loop.train(make_recipe(str(tmp_path / "one"), train=TRAIN))
    two = launcher(make_recipe(str(tmp_path / "two"), train=TRAIN | {"accumulate": 4}))
    assert two.codes == [0, 0], two.said
    assert_same(one, tmp_path / "two")
    rows = [line.split("\t") for line in (one / "samples" / "rank0.tsv").read_text().splitlines()]
    robots = [[row[2] for row in rows if row[0] == str(step)] for step in range(1, 5)]
    assert any({step[3], step[7]} < set(step) for step in robots), "the case above did not come up"
