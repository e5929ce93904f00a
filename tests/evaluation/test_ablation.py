"""An ablation as data: which runs it consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.evaluation.ablation import Ablation
from vla_adapt.recipe import Recipe

TEXT = """
name: a
output: {output}
recipe: quickstart
changes: {{train: {{steps: 7}}, adaptation: {{kind: lora, rank: 2, alpha: 4}}}}
variants:
  own: {{}}
  told: {{policy.head.condition: token, train.batch_size: 8}}
"""


def load(folder: Path) -> Ablation:
    file = folder / "a.yaml"
    file.write_text(TEXT.format(output=folder / "out"))
    return Ablation.load(str(file))


@pytest.mark.parametrize("name", Ablation.available())
def test_every_recipe_of_every_built_in_ablation_loads(name: str):
    ablation = Ablation.load(name)
    cells = ablation.cells(2)
    recipes = [Recipe.load(ablation.recipe, [*cell.overrides]) for cell in cells]
    assert len({recipe.output for recipe in recipes}) == len(cells) == 2 * len(ablation.variants)
    assert (
        len({(recipe.mixture_spec.model_dump_json(), recipe.train.model_dump_json()) for recipe in recipes})
        == 1
    )
    assert [recipe.seed for recipe in recipes] == [cell.seed for cell in cells]


def test_changes_of_a_variant_come_after_those_of_all(tmp_path: Path):
    ablation = load(tmp_path)
    own, told = (Recipe.load(ablation.recipe, [*cell.overrides]) for cell in ablation.cells(1))
    assert (own.train.steps, own.train.batch_size, own.policy.head.condition) == (7, 32, "none")
    assert (told.train.steps, told.train.batch_size, told.policy.head.condition) == (7, 8, "token")
    assert own.adaptation == told.adaptation
    assert told.output == str(tmp_path / "out" / "told" / "seed0")


def test_seeds_come_one_after_the_other(tmp_path: Path):
    cells = load(tmp_path).cells(2)
    assert [str(cell) for cell in cells] == ["own, seed 0", "told, seed 0", "own, seed 1", "told, seed 1"]


def test_mistakes_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean 'sharing'"):
        Ablation.load("sharin")
    (tmp_path / "b.yaml").write_text("name: b\noutput: o\nrecipe: quickstart\nvariant: {}\n")
    with pytest.raises(ValueError, match="did you mean 'variants'"):
        Ablation.load(str(tmp_path / "b.yaml"))
