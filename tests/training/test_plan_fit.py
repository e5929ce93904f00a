"""Whether a plan fits: sizes as people write them, the machine's memory, and ways out that were planned."""

from __future__ import annotations

import pytest

from vla_adapt.recipe import Recipe
from vla_adapt.training import plan_fit
from vla_adapt.training.plan import Plan
from vla_adapt.training.plan_fit import gigabytes, machine_memory, parse_bytes, way_out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("24GB", 24e9), ("24 GiB", 24 * 2**30), ("800m", 800e6), ("1.5T", 1.5e12), ("4096", 4096)],
)
def test_sizes(text: str, wanted: float):
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "24 apples", "0GB", "iB"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="wanted a size such as 24GB"):
        parse_bytes(text)


def test_a_process_may_have_its_part_of_the_machine_and_no_more_than_its_group(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plan_fit, "_CGROUP", (tmp_path / "none",))
    whole = machine_memory("cpu", 1)
    assert machine_memory("cpu", 2) == whole // 2
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    monkeypatch.setattr(plan_fit, "_CGROUP", (limit,))
    assert machine_memory("cpu", 1) == whole
    limit.write_text("1000000\n")
    assert machine_memory("cpu", 4) == 250_000


def plan_of(recipe: Recipe) -> Plan:
    """10 bytes, 10 per sample at once (5 or 2 with checkpointing), half as much in bf16, 1 per rank."""
    train = recipe.train
    samples = train.batch_size // train.accumulate
    each = {False: 10, "towers": 5, True: 2}[train.checkpointing]
    activations = samples * each // (2 if train.precision == "bf16" else 1)
    rank = recipe.adaptation.rank if recipe.adaptation.kind == "lora" else 100
    memory = {"weights": 10, "activations": activations, "optimizer": rank, "batches": 0}
    return Plan("cpu", {}, 0, memory, samples, train.accumulate, 1, 0, 0, None, {})


def recipe(*overrides: str) -> Recipe:
    return Recipe.load("quickstart", ["train.batch_size=16", "adaptation.rank=4", *overrides])


def test_ways_out_are_those_that_fit():
    words = way_out(recipe(), plan_of(recipe()), 60, plan_of)
    assert words.startswith("one process needs 0.0 MB")
    assert "--set train.accumulate=4 needs" in words
    assert "--set train.checkpointing=true needs" in words
    assert "towers" not in words
    assert "--set train.checkpointing=towers needs" in way_out(recipe(), plan_of(recipe()), 100, plan_of)
    assert "precision" not in words
    assert "rank" not in words
    words = way_out(recipe(), plan_of(recipe()), 17, plan_of)
    assert words.endswith(
        "; --set train.accumulate=16 --set train.checkpointing=true needs 0.0 MB; "
        "--set train.accumulate=16 --set train.checkpointing=true --set train.precision=bf16 needs 0.0 MB"
    )


def test_a_smaller_rank_is_proposed_where_it_helps():
    large = recipe("adaptation.rank=1000", "train.batch_size=1")
    words = way_out(large, plan_of(large), 600, plan_of)
    assert words.endswith("--set adaptation.rank=500 needs 0.0 MB")
    full = recipe("adaptation={kind: full}", "train.batch_size=1")
    assert "--set adaptation.kind=lora needs" in way_out(full, plan_of(full), 60, plan_of)


def test_when_nothing_fits_the_least_is_named():
    words = way_out(recipe(), plan_of(recipe()), 3, plan_of)
    assert "the least of what was tried, --set train.accumulate=16 --set train.checkpointing=true" in words
    assert "train.precision=bf16, needs 0.0 MB: take a larger machine, several with shards" in words


def test_bytes_for_people():
    assert (gigabytes(51_000_000_000), gigabytes(12_000_000), gigabytes(445_000)) == (
        "51.0 GB",
        "12 MB",
        "0.4 MB",
    )
