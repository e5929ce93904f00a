"""Adaptation methods: what trains, and that the base's own numbers stay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from vla_adapt.adaptation.adapter_name import SHARED, adapter_of
from vla_adapt.adaptation.concatenate import concatenated
from vla_adapt.adaptation.method import Frozen, Full, Lora, Nothing, SharedLora, activate
from vla_adapt.policy.openvla import OpenVLA


@pytest.fixture
def model(random_base: Path) -> OpenVLA:
    return OpenVLA.from_pretrained(random_base)


def logits(model: OpenVLA) -> torch.Tensor:
    size = model.config.image_sizes[0]
    pixels = torch.randn(1, 6, size, size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 30, 40]])
    with torch.no_grad():
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool), pixel_values=pixels
        ).logits


def test_lora_trains_adapters_only_and_starts_at_the_base(model: OpenVLA):
    before = logits(model)
    Lora(rank=2, targets="all_linear").prepare(model, ["left", "right"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    for robot in ("left", "right", None):
        activate(model, robot)
        assert torch.allclose(logits(model), before, atol=1e-6)


def test_all_linear_reaches_language_model_projector_and_both_towers(model: OpenVLA):
    Lora(rank=2, targets="all_linear").prepare(model, ["left"])
    names = concatenated(model, "left")[1]
    for part in (
        "language_model",
        "projector",
        "vision_backbone.featurizer",
        "vision_backbone.fused_featurizer",
    ):
        assert any(f".{part}." in name for name in names), f"no adapter in {part}"
    assert not any("lm_head" in name for name in names)


def test_activate_switches_between_robots(model: OpenVLA):
    Lora(rank=2).prepare(model, ["left", "right"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.left." in name:
                parameter.normal_()
    activate(model, "right")
    plain = logits(model)
    activate(model, "left")
    assert not torch.allclose(logits(model), plain, atol=1e-4)
    activate(model, None)
    assert torch.allclose(logits(model), plain, atol=1e-6)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)


def test_the_shared_adapter_is_of_every_robot_but_not_of_the_bare_base(model: OpenVLA):
    before = logits(model)
    Lora(rank=2, shared=SharedLora(rank=3, alpha=4)).prepare(model, ["left", "right"])
    mine = {name: p for name, p in model.named_parameters() if adapter_of(name) == SHARED}
    assert mine
    assert all(parameter.requires_grad for parameter in mine.values())
    with torch.no_grad():
        for parameter in mine.values():
            parameter.normal_(std=0.1)
    activate(model, "left")
    left = logits(model)
    assert not torch.allclose(left, before, atol=1e-3)
    activate(model, "right")  # whose own adapter still changes nothing
    assert torch.allclose(logits(model), left, atol=1e-6)
    activate(model, None)
    assert torch.allclose(logits(model), before, atol=1e-6)


@pytest.mark.parametrize("robots", [["left", "shared"], ["left.arm"]])
def test_robots_that_no_adapter_can_be_named_after_are_refused(model: OpenVLA, robots: list[str]):
    with pytest.raises(ValueError, match="cannot be called"):
        Lora().prepare(model, robots)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("all_liner", "did you mean 'all_linear'?"),
        ("q_proj", "whole names"),
        (".*(", "no regular expression"),
    ],
)
def test_targets_that_can_match_no_module_are_refused(targets: str, told: str):
    with pytest.raises(ValueError, match=re.escape(told)):
        Lora(targets=targets)
    assert Lora(targets=r".*\.q_proj").targets == r".*\.q_proj"


@pytest.mark.parametrize(("method", "trains"), [(Frozen(), False), (Nothing(), False), (Full(), True)])
def test_others_train_all_or_nothing_of_the_model(
    model: OpenVLA, method: Frozen | Nothing | Full, trains: bool
):
    method.prepare(model, ["left"])
    assert {parameter.requires_grad for parameter in model.parameters()} == {trains}
