"""Recipes: overrides reach their key, mistakes are named with the near name."""

from __future__ import annotations

import pytest
import yaml

from vla_adapt.recipe import Recipe


def test_overrides_reach_their_key():
    recipe = Recipe.load("quickstart", ["train.steps=7", "mixture.1.weight=3", "adaptation.rank=4", "seed=5"])
    assert recipe.train.steps == 7
    assert recipe.mixture[1].weight == 3
    assert recipe.adaptation.rank == 4  # type: ignore[union-attr]
    assert recipe.seed == 5


def test_round_trip():
    recipe = Recipe.load("quickstart")
    assert Recipe.model_validate(yaml.safe_load(recipe.to_text())) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=7", "steps"),
        ("adaptation.ranks=7", "rank"),
        ("trian.steps=7", "train"),
        ("train.steps=many", "train.steps"),
        ("train.steps", "--set wants a.b=value"),
        ("mixture.9.weight=1", "'9' is no item of a list"),
        ("name.x=1", "'name' is a value"),
    ],
)
def test_mistakes_are_named(override: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.load("quickstart", [override])
    assert "\n" not in str(caught.value)


def test_unknown_recipe_suggests():
    with pytest.raises(ValueError, match="did you mean 'quickstart'"):
        Recipe.load("quikstart")


def test_what_an_interrupted_run_may_change():
    recipe = Recipe.load("quickstart")
    loop = ("train.workers=3", "train.log_every=7", "train.save_every=9", "train.log_samples=true")
    for same in (*loop, "policy.constants.ur5e.gripper=[1.0]"):
        assert Recipe.load("quickstart", [same]).training_text() == recipe.training_text()
    for other in ("train.steps=7", "train.batch_size=8", "mixture.0.weight=3", "seed=5"):
        assert Recipe.load("quickstart", [other]).training_text() != recipe.training_text()
