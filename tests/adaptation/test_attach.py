"""Adapters onto a resident base: each served alone as before, or all in one mixed batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from vla_adapt.adaptation.attach import attach_adapter
from vla_adapt.adaptation.lora import ALL_LINEAR, ATTENTION
from vla_adapt.adaptation.method import activate
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.openvla import OpenVLA

CONFIGS = {
    "left": LoraConfig(r=2, target_modules=ATTENTION),
    "right": LoraConfig(r=3, lora_alpha=9, use_rslora=True, target_modules=ALL_LINEAR),
}


def run(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    ids, pixels = torch.randint(5, 200, (4, 5), generator=draw), torch.randn(4, 6, 84, 84, generator=draw)
    with torch.inference_mode():
        return model(ids[rows], pixel_values=pixels[rows]).logits


def made_elsewhere(base: Path, config: LoraConfig) -> tuple[PeftModel, dict[str, Tensor]]:
    """An adapter that plain PEFT trained, and its tensors."""
    tuned = get_peft_model(OpenVLA.from_pretrained(base), config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return tuned, get_peft_model_state_dict(tuned)


def test_robots_on_one_base_answer_one_mixed_batch_as_each_alone(random_base: Path):
    """Also when their adapters are on different layers."""
    resident, wanted = OpenVLA.from_pretrained(random_base), {}
    bare = run(resident)
    for robot, config in CONFIGS.items():
        tuned, tensors = made_elsewhere(random_base, config)
        wanted[robot] = run(tuned.base_model)
        attach_adapter(resident, robot, config, tensors)
    for robot in CONFIGS:
        activate(resident, robot)
        torch.testing.assert_close(run(resident), wanted[robot], atol=1e-5, rtol=1e-4)
    with route(resident, ["left", "right", "right", None]):
        mixed = run(resident)
    expected = torch.cat([wanted["left"][:1], wanted["right"][1:3], bare[3:]])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for n, parameter in resident.named_parameters() if "lora_" in n)


def test_a_robot_that_no_adapter_can_be_named_after_is_refused_before_anything_changes(random_base: Path):
    _, tensors = made_elsewhere(random_base, CONFIGS["left"])
    resident = OpenVLA.from_pretrained(random_base)
    with pytest.raises(ValueError, match=r"cannot be called 'arm\.left'"):
        attach_adapter(resident, "arm.left", CONFIGS["left"], tensors)
    assert not any("lora_" in name for name, _ in resident.named_parameters())


def test_the_base_stays_as_it_is_whatever_the_configuration_says(random_base: Path):
    """PiSSA takes the main singular directions out of the base's weights, `modules_to_save` replaces some."""
    _, tensors = made_elsewhere(random_base, CONFIGS["left"])
    resident = OpenVLA.from_pretrained(random_base)
    bare = run(resident)
    pissa = LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights="pissa")
    attach_adapter(resident, "left", pissa, tensors)
    activate(resident, None)
    assert torch.equal(run(resident), bare)
    more = LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"has modules_to_save \['lm_head'\], which also changes other"):
        attach_adapter(resident, "right", more, tensors)
    assert torch.equal(run(resident), bare)
    assert pissa.init_lora_weights == "pissa"
