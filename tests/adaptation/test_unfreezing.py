"""Parts of the base: which parameters are whose, stages in order, layers that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vla_adapt.adaptation.method import LastN, Staged
from vla_adapt.policy.openvla import OpenVLA

STAGES = [
    {"from_step": 0, "train": ["head"]},
    {"from_step": 5, "train": ["head", {"last_n": 1}], "learning_rate": 1e-4},
    {"from_step": 9, "train": ["projector", "vision"]},
    {"from_step": 12, "train": ["language"]},
    {"from_step": 20, "train": ["all"], "learning_rate": 1e-5},
]


@pytest.fixture
def model(random_base: Path) -> OpenVLA:
    return OpenVLA.from_pretrained(random_base)


def trained(model: OpenVLA) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("projector", [True, False])
def test_last_layers_train_with_norm_and_projector(model: OpenVLA, projector: bool):
    LastN(layers=1, projector=projector).prepare(model, ["ur5e"])
    names = trained(model)
    parts = {name.split(".")[0] for name in names}
    assert parts == ({"language_model", "projector"} if projector else {"language_model"})
    language = {name for name in names if name.startswith("language_model.")}
    assert "language_model.model.norm.weight" in language
    assert all(".layers.1." in name or name.endswith("model.norm.weight") for name in language)
    assert len(language) > 5


def test_more_layers_than_there_are_is_refused(model: OpenVLA):
    with pytest.raises(ValueError, match=r"adaptation\.layers: asked for the last 3 layers, .* has 2"):
        LastN(layers=3).prepare(model, ["ur5e"])
    staged = Staged.model_validate({"kind": "staged", "stages": [{"from_step": 0, "train": [{"last_n": 9}]}]})
    with pytest.raises(ValueError, match="last 9 layers, the language model has 2"):
        staged.prepare(model, ["ur5e"])


def test_each_stage_trains_its_parts(model: OpenVLA):
    staged = Staged.model_validate({"kind": "staged", "stages": STAGES})
    names = [f"model.{name}" for name, _ in model.named_parameters()] + [
        "heads.ur5e.fc2.weight",
        "auxiliary.x",
    ]

    def at(step: int) -> set[str]:
        wanted = {name for name in names if staged.trains(name, step, layers=2)}
        assert "auxiliary.x" in wanted, "helper losses train in every stage"
        return wanted - {"auxiliary.x"}

    head = {"heads.ur5e.fc2.weight"}
    assert at(0) == at(4) == head
    last = {name for name in names if ".layers.1." in name and "language_model" in name}
    assert at(5) == at(8) == head | last | {"model.language_model.model.norm.weight"}
    assert at(9) == {
        name for name in names if name.startswith(("model.projector.", "model.vision_backbone."))
    }
    assert at(12) == {name for name in names if name.startswith("model.language_model.")}
    assert at(20) == at(999) == set(names) - {"auxiliary.x"}
    assert staged.rates(3e-4) == [(0, 3e-4), (5, 1e-4), (9, 3e-4), (12, 3e-4), (20, 1e-5)]
    staged.prepare(model, ["ur5e"])
    assert len(trained(model)) == len(names) - 2


def test_only_what_some_stage_trains_requires_gradients(model: OpenVLA):
    staged = Staged.model_validate({"kind": "staged", "stages": [{"from_step": 0, "train": ["projector"]}]})
    staged.prepare(model, ["ur5e"])
    assert {name.split(".")[0] for name in trained(model)} == {"projector"}
    assert not staged.trains_heads


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least 1 item"),
        ([{"from_step": 3, "train": ["head"]}], r"stages start at steps \[3\]; wanted 0 first"),
        (
            [{"from_step": 0, "train": ["head"]}] * 2,
            r"start at steps \[0, 0\]; wanted 0 first, then each later",
        ),
        ([{"from_step": 0, "train": []}], "at least 1 item"),
        ([{"from_step": 0, "train": ["heads"]}], "'head', 'projector'"),
        ([{"from_step": 0, "train": [{"last_n": 0}]}], "greater than 0"),
        ([{"from_step": 0, "train": ["head"], "learning_rate": 0}], "greater than 0"),
    ],
)
def test_wrong_stages_are_refused(stages: list[dict[str, object]], message: str):
    with pytest.raises(ValidationError, match=message):
        Staged.model_validate({"kind": "staged", "stages": stages})
