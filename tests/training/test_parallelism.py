"""The table of methods and launches: every cell runs, in real processes, or is refused with its reason."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training import parallelism as cells
from vla_adapt.training.parallelism import DDP, FSDP2, ONE, check_way, method_of, refusal, table

MakeRecipe = Callable[..., Recipe]
CELLS = Path(__file__).parent / "matrix_cells.py"
RUN = runpy.run_path(str(CELLS))
METHODS: dict[str, dict[str, Any]] = RUN["METHODS"]


def test_every_method_has_a_row(make_recipe: MakeRecipe, tmp_path: Path):
    rows = [method_of(make_recipe(str(tmp_path), adaptation=method)) for method in METHODS.values()]
    assert tuple(rows) == tuple(METHODS) == cells.METHODS


@pytest.mark.parametrize(
    ("method", "way", "reason"),
    [
        ("lora", "ZeRO-2", "'lora' on ZeRO-2: DeepSpeed is not supported: .* recipes/launch/fsdp.yaml"),
        ("full", "ZeRO-3", "DeepSpeed is not supported"),
        ("qlora", FSDP2, "'qlora' on FSDP2: 4-bit weights .* cannot be cut into shards; take DDP"),
        ("staged", FSDP2, "stages change that; take DDP, or one run per stage"),
    ],
)
def test_what_is_refused(make_recipe: MakeRecipe, tmp_path: Path, method: str, way: Any, reason: str):
    with pytest.raises(ValueError, match=reason):
        check_way(make_recipe(str(tmp_path), adaptation=METHODS[method]), way)


def test_a_frozen_base_that_no_step_runs_is_not_sharded(make_recipe: MakeRecipe, tmp_path: Path):
    kept = {"adaptation": {"kind": "frozen"}, "policy": {"head": {"kind": "readout"}}}
    with pytest.raises(ValueError, match=r"features .* are kept, .* take DDP, or adaptation.cache=false"):
        check_way(make_recipe(str(tmp_path), **kept), FSDP2)
    check_way(make_recipe(str(tmp_path), **kept), DDP)
    kept["adaptation"]["cache"] = False
    check_way(make_recipe(str(tmp_path), **kept), FSDP2)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({"compile": True}, "compiled blocks"),
        ({"optimizer": {"kind": "adamw_8bit"}}, "optimizer 'adamw_8bit'"),
    ],
)
def test_savings_that_were_never_tried_with_shards(
    make_recipe: MakeRecipe, tmp_path: Path, train: dict[str, Any], reason: str
):
    recipe = make_recipe(str(tmp_path), train=train)
    check_way(recipe, DDP)
    with pytest.raises(ValueError, match=reason):
        check_way(recipe, FSDP2)


def test_recordings_are_of_one_process(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path), train={"cuda_graphs": True})
    check_way(recipe, ONE)
    with pytest.raises(ValueError, match=r"train.cuda_graphs was never tried with several processes"):
        check_way(recipe, DDP)


def test_a_launch_that_cannot_train_a_recipe_ends_before_it_starts(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "launched_way", lambda processes: FSDP2)
    with pytest.raises(ValueError, match="'staged' on FSDP2"):
        loop.train(make_recipe(str(tmp_path / "run"), adaptation=METHODS["staged"]))
    assert not (tmp_path / "run").exists()


def test_the_table_says_it_all():
    lines = table().splitlines()
    assert lines[0] == "| | 1 process | DDP | FSDP2 | ZeRO-2 | ZeRO-3 |"
    assert lines[2] == "| lora | fp32, bf16 | fp32, bf16 | fp32, bf16 | refused (1) | refused (1) |"
    rows, notes = lines[2:-5], lines[-4:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(cells.METHODS)
    assert "| frozen | fp32, bf16 | fp32, bf16 | fp32, bf16; refused where (3) |" in lines[5]
    refused = [(m, w) for m, w in product(cells.METHODS, cells.WAYS) if refusal(m, w, "fp32")]
    assert "\n".join(rows).count("refused (") == len(refused) == 2 * len(cells.METHODS) + 2
    assert [note[:3] for note in notes] == ["1. ", "2. ", "3. ", "4. "]


@pytest.mark.slow
def test_every_other_cell_runs(make_recipe: MakeRecipe, launcher, tmp_path: Path):
    """On one process and on two: the same losses, whatever is sharded. In 4 bits with bitsandbytes only."""
    for world in (1, 2):
        recipe = make_recipe(
            str(tmp_path / str(world)), train={"steps": 2, "batch_size": 4, "log_every": 1, "save_every": 1}
        )
        launch = launcher(recipe, world=world, before=f"{CELLS}:instead")
        assert launch.codes == [0] * world, launch.said
    left = 0
    for method, precision in product(METHODS, cells.PRECISIONS):
        runs = {
            way: tmp_path / ("1" if way == ONE else "2") / f"{method} {way} {precision}"
            for way in cells.WAYS if refusal(method, way, precision) is None
            if method != "qlora" or RUN["FOUR_BITS"]
        }  # fmt: skip
        found = {way: losses(run) for way, run in runs.items()}
        left += len(found)
        for way in found:
            close = 1e-5 if precision == "fp32" else 2e-4
            assert found[way] == pytest.approx(found[ONE], abs=close), (method, way, precision)
    assert left == 2 * (6 * 3 - 1 + 2 * RUN["FOUR_BITS"])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
