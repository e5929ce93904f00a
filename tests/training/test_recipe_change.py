"""What differs between recipes is named by dotted keys."""

from __future__ import annotations

from collections.abc import Callable

import yaml

from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, Source
from vla_adapt.recipe import Recipe
from vla_adapt.training.recipe_change import changed_keys

MakeRecipe = Callable[..., Recipe]


def test_the_same_recipe(make_recipe: MakeRecipe):
    recipe = make_recipe("out")
    assert changed_keys(recipe.to_text(), recipe) == []
    tree = yaml.safe_load(recipe.to_text())
    del tree["validation"], tree["train"]["ema"]
    assert changed_keys(yaml.safe_dump(tree), recipe) == [], "defaults written out or not"


def test_keys_are_named_and_those_of_no_update_passed_over(make_recipe: MakeRecipe):
    saved = make_recipe("out").to_text()
    now = make_recipe("out", seed=9, title="another")
    assert sorted(changed_keys(saved, now)) == ["seed", "title"]
    assert changed_keys(saved, now, training_only=True) == ["seed"]


def test_a_recipe_of_another_version(make_recipe: MakeRecipe):
    recipe = make_recipe("out")
    saved = yaml.safe_dump({**yaml.safe_load(recipe.to_text()), "gone": {"since": 1}})
    assert changed_keys(saved, recipe) == ["gone.since"]


def test_where_the_data_lies_is_for_the_loader_to_judge(make_recipe: MakeRecipe):
    recipe = make_recipe("out")
    assert isinstance(recipe.mixture, list)
    moved = recipe.model_copy(
        update={"mixture": [one.model_copy(update={"path": f"/moved{one.path}"}) for one in recipe.mixture]}
    )
    assert changed_keys(recipe.to_text(), moved, training_only=True) == []
    assert changed_keys(recipe.to_text(), moved) == ["mixture.0.path", "mixture.1.path"]
    elsewhere = [one.model_copy(update={"cache_dir": "/cache"}) for one in recipe.mixture]
    indexed = recipe.model_copy(update={"mixture": elsewhere})
    assert changed_keys(recipe.to_text(), indexed, training_only=True) == []
    named = [
        recipe.model_copy(
            update={"mixture": MixtureSpec(named="rtx", folder=folder, sources=[Source(path=folder)])}
        )
        for folder in ("a", "b")
    ]
    assert changed_keys(named[0].to_text(), named[1], training_only=True) == []
    other = moved.model_copy(
        update={"mixture": [*moved.mixture[:1], moved.mixture[1].model_copy(update={"split": "val"})]}
    )
    assert changed_keys(recipe.to_text(), other, training_only=True) == ["mixture.1.split"]
