"""Facts of episodes: one type each, whatever the episodes say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_adapt.episodes.conversion.convert_facts import CarriedFacts, fact_field
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec


@pytest.mark.parametrize(
    ("values", "in_lerobot", "in_rlds"),
    [
        (["a", "b"], "", ""),
        ([1, 2.5], "", "64-bit floats became 32-bit"),
        ([True, False], "", ""),
        ([[1, 2], [3, 4]], "", ""),
        ([[1, 2], [3]], "", "of another size in every episode, RLDS wants one"),
        (["a", None], "", "missing in 1 of 2 episodes, RLDS wants it in all"),
        (["a", 1], "is number in one episode, text in another", "is number in one episode, text in another"),
        ([{"a": 1}, {"a": 2}], "neither text nor numbers", "neither text nor numbers"),
        ([["a"], ["b"]], "neither text nor numbers", "neither text nor numbers"),
    ],
)
def test_what_each_format_holds(values: list[Any], in_lerobot: str, in_rlds: str) -> None:
    facts = [{"fact": value} for value in values]
    for to, wanted in (("lerobot", in_lerobot), ("rlds", in_rlds)):
        carried = CarriedFacts(facts, to, {})  # type: ignore[arg-type]
        assert carried.left_behind == ([f"episode fact 'fact': {wanted}"] if wanted else [])
        if not wanted:
            assert [np.asarray(carried.values(one)["fact"]).tolist() for one in facts] == values


def test_numbers_have_the_same_type_everywhere() -> None:
    facts = [{"a": 1, "b": [1, 2]}, {"a": 2.5, "b": [3, 4]}]
    carried = CarriedFacts(facts, "lerobot", {"b": LeafSpec(Kind.NUMBER, (), "int16")})
    first = carried.values(facts[0])
    assert (first["a"].dtype, first["b"].dtype) == (np.float64, np.int16)
    leaf, stored = fact_field(first["b"])
    assert (leaf, stored.tolist()) == (LeafSpec(Kind.NUMBER, (2,), "int16"), [[1, 2]])


def test_what_no_episode_says_is_nothing_to_carry() -> None:
    carried = CarriedFacts([{"a": None}, {}], "rlds", {})
    assert (carried.names, carried.left_behind) == (set(), [])


def test_examples_are_of_the_first_episode_that_has_one() -> None:
    facts = [{"a": None, "b": "x"}, {"a": 3, "b": "y"}]
    assert CarriedFacts(facts, "lerobot", {}).examples(facts) == {"a": 3, "b": "x"}
