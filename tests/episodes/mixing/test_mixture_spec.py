"""Mixtures as data: the built-in ones are those of OpenVLA and Octo, and mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, NamedLine, NamedMixture, Source, SourceOptions
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.recipe import Recipe
from vla_adapt.suggest import validate_model

# Number of datasets, and the sum of their weights, added up by hand from the published lists.
PUBLISHED = {
    "bridge": (1, 1.0),
    "bridge_rt_1": (2, 2.0),
    "rtx": (10, 14.374976),
    "rtx_franka": (24, 36.574976),
    "oxe_magic_soup": (23, 29.574976),
    "oxe_magic_soup_plus": (27, 31.034976),
    "oxe_magic_soup_plus_minus": (25, 31.334105),
    "octo_bridge": (1, 1.0),
    "octo_rtx": (11, 19.374976),
    "octo_rtx_franka": (25, 41.574976),
    "octo_magic_soup": (25, 30.774976),
    "oxe_flex_act_soup": (32, 39.774976),
}
ALONE = [
    *(f"libero_{suite}_no_noops" for suite in ("spatial", "object", "goal", "10")),
    *(f"tdroid_{task}" for task in ("carrot_in_bowl", "pour_corn_in_pot", "flip_pot_upright")),
    *(
        f"tdroid_{task}"
        for task in ("move_object_onto_plate", "knock_object_over", "cover_object_with_towel")
    ),
    "droid_wipe",
]
PUBLISHED |= dict.fromkeys(ALONE, (1, 1.0))


@pytest.mark.parametrize("name", NamedMixture.available())
def test_every_named_mixture_loads(name: str) -> None:
    mixture = NamedMixture.load(name)
    assert mixture.title
    assert mixture.balance == "size"
    weights = mixture.weights()
    assert (len(weights), round(sum(weights.values()), 6)) == PUBLISHED[name]
    assert not weights.keys() - CATALOGUE.keys(), "every dataset is in the catalogue"


def test_named_mixtures_against_the_catalogue_document(shared_dir: Path) -> None:
    sections = (shared_dir / "OXE_CATALOGUE.md").read_text().split("## Mixtures (")[1:]
    renamed = {("octo", name): f"octo_{name}" for name in ("bridge", "rtx", "rtx_franka")}
    renamed["octo", "oxe_magic_soup"] = "octo_magic_soup"
    seen = set()
    for section in sections:
        owner = section.split(")")[0]
        for name, listed in re.findall(r"- \*\*(\w+)\*\* \([^)]*\): (.*)", section):
            ours = renamed.get((owner, name), name)
            lines = [line.rsplit(" ", 1) for line in listed.split(", ")]
            got = [(line.dataset, round(line.weight, 6)) for line in NamedMixture.load(ours).datasets]
            assert got == [(dataset, float(weight)) for dataset, weight in lines]
            seen.add(ours)
    assert seen == set(PUBLISHED)


def test_of_a_dataset_listed_twice_the_first_line_counts() -> None:
    assert [line.dataset for line in NamedMixture.load("rtx_franka").datasets].count("taco_play") == 2
    assert NamedMixture.load("rtx_franka").weights()["taco_play"] == 2.0


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("title: mine\nbalance: robot\ndatasets: [{dataset: a, weight: 2}]\n")
    assert NamedMixture.load(str(file)).weights() == {"a": 2.0}
    with pytest.raises(ValueError, match=r"no mixture 'oxe_magic_sop'.*did you mean 'oxe_magic_soup'"):
        NamedMixture.load("oxe_magic_sop")


def test_a_line_says_what_differs_from_the_defaults() -> None:
    def over(line: dict[str, Any], defaults: dict[str, Any]) -> SourceOptions:
        merged = NamedLine(dataset="a", weight=1, **line).over(SourceOptions(**defaults))
        return SourceOptions(**merged)

    assert over({}, {}) == SourceOptions()
    both = over({"stride": 5, "on_error": "error"}, {"on_error": "skip", "episodes": 3})
    assert both == SourceOptions(stride=5, on_error="error", episodes=3)
    filters = over(
        {"filter": {"metadata": {"success": True}, "min_steps": 2}},
        {"filter": {"metadata": {"seed": 1, "success": False}, "has_instruction": True, "min_steps": 9}},
    ).filter
    assert filters.metadata == {"success": True, "seed": 1}
    assert (filters.min_steps, filters.has_instruction) == (2, True)
    assert over({"held_out_split": "val"}, {"held_out": 0.1}).judged_split == "val"
    assert over({"held_out": 0.2}, {"held_out_split": "val"}).held_out == 0.2
    assert over({}, {"held_out": 0.1}).held_out == 0.1


def test_kuka_is_trained_on_successes_only() -> None:
    lines = [NamedMixture.load(name).lines() for name in NamedMixture.available()]
    kuka = [mixture["kuka"] for mixture in lines if "kuka" in mixture]
    assert len(kuka) == 9
    assert all(line.filter.metadata == {"success": True} for line in kuka)


def test_what_is_held_out() -> None:
    assert Source(path="a").judged_split == "val"
    assert Source(path="a", held_out_split="test").judged_split == "test"
    assert Source(path="a", held_out_split="").judged_split is None
    assert Source(path="a", held_out=0.05).judged_split is None


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "a mixture without datasets"),
        ({"named": "rtx"}, "'named' and 'folder' belong together"),
        ({"folder": "x", "sources": [{"path": "a"}]}, "'named' and 'folder' belong together"),
        ({"defaults": {"stride": 2}, "sources": [{"path": "a"}]}, "'defaults' and 'missing' are for a named"),
        ({"missing": "skip", "sources": [{"path": "a"}]}, "'defaults' and 'missing' are for a named"),
        ({"named": "rtx", "folder": "x", "balanc": "size"}, "did you mean 'balance'"),
        ({"named": "rtx", "folder": "x", "defaults": {"heldout": 0.1}}, "did you mean 'held_out'"),
        ({"sources": [{"path": "a", "held_out": 0.1, "held_out_split": "val"}]}, "give one of them"),
        ({"sources": [{"path": "a", "held_out": 1.0}]}, "less than 1"),
        ({"sources": [{"path": "a", "weight": 0}]}, "greater than 0"),
        ({"sources": [{"path": "a", "weight": float("inf")}]}, "finite"),
        ({"sources": [{"path": "a", "stride": 0}]}, "greater than or equal to 1"),
        ({"sources": [{"path": "a", "image_scal": 9}]}, "did you mean 'image_scale'"),
        ({"sources": [{"path": "a", "filter": {"min_step": 3}}]}, "did you mean 'min_steps'"),
        ({"sources": [{"path": "a"}], "order": "random"}, "'shuffle' or 'shards'"),
        ({"sources": [{"path": "a"}], "open_blocks": 1}, "open_blocks"),
    ],
)
def test_mistakes(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        validate_model(MixtureSpec, tree, "recipe")
    assert "\n" not in str(caught.value)


def test_both_forms_in_a_recipe() -> None:
    rest = {"name": "x", "output": "o"}
    short = validate_model(Recipe, {**rest, "mixture": [{"path": "a", "weight": 2}]}, "r")
    long = validate_model(Recipe, {**rest, "mixture": {"sources": [{"path": "a", "weight": 2}]}}, "r")
    assert short.mixture_spec == long.mixture_spec
    named = validate_model(Recipe, {**rest, "mixture": {"named": "rtx", "folder": "~/oxe"}}, "r")
    assert named.mixture_spec.named == "rtx"
    for wrong, message in (
        ([{"pth": "a"}], "did you mean 'path'"),
        ({"name": "rtx"}, "did you mean 'named'"),
    ):
        with pytest.raises(ValueError, match=message):
            validate_model(Recipe, {**rest, "mixture": wrong}, "r")
    with pytest.raises(ValueError, match="at least 1 item"):
        validate_model(Recipe, {**rest, "mixture": []}, "r")
