"""A finished run is found again, and not replaced by one of another recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_adapt.recipe import Recipe
from vla_adapt.training.finished_run import SUMMARY, finished_recipe, is_finished
from vla_adapt.training.loop import train

MakeRecipe = Callable[..., Recipe]


def test_nothing_the_same_and_another(make_recipe: MakeRecipe, tmp_path: Path):
    recipe = make_recipe(str(tmp_path))
    assert finished_recipe(tmp_path) is None
    assert not is_finished(tmp_path, recipe)
    (tmp_path / SUMMARY).write_text(json.dumps({"recipe": recipe.to_text()}))
    assert is_finished(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"finished run of another recipe, which differs in seed; .*--fresh"):
        is_finished(tmp_path, make_recipe(str(tmp_path), seed=9))


def test_only_fresh_trains_another_recipe_in_its_place(
    make_recipe: MakeRecipe, finished_run: Path, tmp_path: Path
):
    """What is refused leaves everything as it was; what is begun forgets that the other was finished."""
    folder = tmp_path / "run"
    recipe = make_recipe(str(folder), mixture=[{"path": str(tmp_path / "nowhere")}])
    folder.mkdir()
    for name in (SUMMARY, "recipe.yaml"):
        (folder / name).write_bytes((finished_run / name).read_bytes())
    with pytest.raises(ValueError, match=r"of another recipe, which differs in .*mixture"):
        train(recipe)
    assert (folder / SUMMARY).is_file()
    with pytest.raises(ValueError, match="nowhere"):
        train(recipe, fresh=True)
    assert not (folder / SUMMARY).exists()
