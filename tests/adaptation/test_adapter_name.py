"""Adapter names: which parameters belong to whom, also for robots named like parts of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.adaptation.adapter_name import SHARED, adapter_of, check_adapter_names, file_key
from vla_adapt.adaptation.method import Lora, SharedLora
from vla_adapt.policy.openvla import OpenVLA


def test_names_like_parts_of_the_model_are_told_apart(random_base: Path):
    model = OpenVLA.from_pretrained(random_base)
    robots = ["language_model", "0", "lora_A"]
    Lora(rank=2, shared=SharedLora(rank=2)).prepare(model, robots)
    owners = [adapter_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert set(owners) == {*robots, SHARED}
    assert len({owners.count(owner) for owner in (*robots, SHARED)}) == 1
    assert all(
        adapter_of(name) is None
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    )


def test_the_key_in_a_file_lacks_the_name():
    name = "language_model.model.layers.0.self_attn.q_proj.lora_A.layers.weight"
    assert adapter_of(name) == "layers"
    assert file_key(name) == "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("robots", "said"),
    [
        (["ur5e", "shared"], "cannot be called 'shared'"),
        (["arm.left"], "cannot be called 'arm.left'"),
        ([""], "cannot be called ''"),
        (["keys"], "cannot be called 'keys'"),
        (["ur5e", "xarm", "ur5e"], "two robots are called 'ur5e'"),
        ([], "no robots"),
    ],
)
def test_impossible_names_are_refused(robots: list[str], said: str):
    with pytest.raises(ValueError, match=said):
        check_adapter_names(robots)
