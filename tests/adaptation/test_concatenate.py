"""Own + shared as one plain PEFT adapter: layer by layer the same, and the same logits in plain PEFT."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from vla_adapt.adaptation.adapter_name import SHARED
from vla_adapt.adaptation.concatenate import concatenated
from vla_adapt.adaptation.method import Lora, SharedLora, activate
from vla_adapt.adaptation.routed import RoutedLinear, route
from vla_adapt.policy.openvla import OpenVLA


def trained(base: Path, lora: Lora) -> OpenVLA:
    """Adapters for two robots, as training might leave them."""
    model = OpenVLA.from_pretrained(base)
    lora.prepare(model, ["left", "right"])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=draw)
    return model


def logits(model: torch.nn.Module, rows: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 6, 84, 84, generator=draw).expand(rows, -1, -1, -1)
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 30, 40]] * rows), pixel_values=pixels).logits


@pytest.mark.parametrize("shared", [None, SharedLora(rank=3, alpha=5)])
@pytest.mark.parametrize("rslora", [False, True])
def test_plain_peft_gives_the_same_logits(
    random_base: Path, tmp_path: Path, shared: SharedLora | None, rslora: bool
):
    model = trained(random_base, Lora(rank=2, alpha=7, rslora=rslora, targets="all_linear", shared=shared))
    seen = {}
    for robot in ("left", "right"):
        config, tensors = concatenated(model, robot)
        config = copy.deepcopy(config)
        config.save_pretrained(str(tmp_path / robot))
        save_file(tensors, tmp_path / robot / "adapter_model.safetensors", metadata={"format": "pt"})
        plain = PeftModel.from_pretrained(OpenVLA.from_pretrained(random_base), str(tmp_path / robot))
        assert not any(isinstance(module, RoutedLinear) for module in plain.modules())
        seen[robot] = logits(plain)
        activate(model, robot)
        torch.testing.assert_close(logits(model), seen[robot], atol=1e-5, rtol=1e-5)
        with route(model, [robot]):
            torch.testing.assert_close(logits(model), seen[robot], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen["left"], seen["right"], atol=1e-3)


@pytest.mark.parametrize("rslora", [False, True])
def test_each_layer_changes_its_weight_by_the_sum(random_base: Path, rslora: bool):
    model = trained(random_base, Lora(rank=2, alpha=7, rslora=rslora, shared=SharedLora(rank=3, alpha=5)))
    config, tensors = concatenated(model, "right")
    assert (config.r, config.lora_alpha, config.use_rslora) == (5, 5, False)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, RoutedLinear)}
    assert len(tensors) == 2 * len(layers) > 0
    for name, layer in layers.items():
        inner, outer = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        wanted = layer.get_delta_weight("right") + layer.get_delta_weight(SHARED)
        torch.testing.assert_close(outer @ inner, wanted, atol=1e-6, rtol=1e-6)
    assert model.peft_config["right"].r == 2  # type: ignore[index]  # the model's own config stays


def test_without_a_shared_adapter_it_is_the_robots_own(random_base: Path):
    model = trained(random_base, Lora(rank=2, alpha=7, rslora=True))
    config, tensors = concatenated(model, "left")
    assert (config.r, config.lora_alpha, config.use_rslora) == (2, 7, True)
    own = {name: p for name, p in model.named_parameters() if ".left." in name}
    assert len(own) == len(tensors)
    for name, parameter in own.items():
        assert torch.equal(tensors["base_model.model." + name.replace(".left", "")], parameter)


@pytest.mark.parametrize("robot", ["nobody", SHARED])
def test_who_has_no_adapter_is_refused(random_base: Path, robot: str):
    model = trained(random_base, Lora(rank=2, shared=SharedLora(rank=2)))
    with pytest.raises(ValueError, match=f"no adapter of '{robot}' in this model; it has left, right"):
        concatenated(model, robot)
