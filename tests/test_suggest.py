"""Misspellings are answered with the near name, in one line."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from vla_adapt.suggest import did_you_mean, load_yaml_model


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Constant(_Strict):
    kind: Literal["constant"] = "constant"
    rate: float = Field(default=1.0, gt=0)


class _Cosine(_Strict):
    kind: Literal["cosine"]
    warmup: int = 0


class _Settings(_Strict):
    steps: int
    schedule: _Constant | _Cosine = _Constant()
    tagged: _Constant | _Cosine | None = Field(default=None, discriminator="kind")
    many: list[_Constant] = []
    named: dict[str, _Constant] | None = None


def _error(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_yaml_model(_Settings, text, "run.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run.yaml:")
    return message


def test_near_name_is_suggested_else_all_are_listed() -> None:
    assert did_you_mean("ur5", ["ur5e", "widowx"]) == "did you mean 'ur5e'?"
    assert did_you_mean("UR5E", ["ur5e", "widowx"]) == "did you mean 'ur5e'?"
    assert did_you_mean("spot", ["b", "a"]) == "known: a, b"
    assert did_you_mean("spot", []) == "none are known"


def test_good_text_loads() -> None:
    loaded = load_yaml_model(_Settings, "steps: 3\nmany: [{rate: 2}]", "run.yaml")
    assert loaded.steps == 3
    assert loaded.many[0].rate == 2.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("stepz: 3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("steps: 3\nmany: [{}, {rat: 2}]", "unknown key 'rat' in many[1]; did you mean 'rate'?"),
        ("steps: 3\nnamed: {slow: {rte: 2}}", "unknown key 'rte' in named.slow; did you mean 'rate'?"),
        ("steps: 3\ntagged: {kind: cosine, warmupp: 2}", "did you mean 'warmup'?"),
        ("steps: 3\ntagged: {kind: cosinus}", "tagged: got kind 'cosinus'; did you mean 'cosine'?"),
        ("many: []", "missing key 'steps'"),
        ("steps: many", "steps: got 'many'"),
        ("steps: 3\nmany: [{rate: -1}]", "many[0].rate: got -1"),
        ("steps: 3\nmany: [{kind: constnt}]", "did you mean 'constant'?"),
        ("steps: 3\nsteps: 4", "line 2 not valid YAML: key 'steps' given twice"),
        ("steps: [3", "not valid YAML"),
        ("- 3", "got list, wanted a YAML mapping"),
        ("", "got NoneType, wanted a YAML mapping"),
    ],
)
def test_bad_text_gives_one_helpful_line(text: str, wanted: str) -> None:
    assert wanted in _error(text)


def test_misspelling_is_reported_before_the_key_it_leaves_missing() -> None:
    assert "unknown key 'stps'" in _error("stps: 3")


def test_misspelt_key_inside_a_union_is_still_suggested() -> None:
    assert "did you mean 'rate'?" in _error("steps: 3\nschedule: {kind: constant, ratee: 2}")
