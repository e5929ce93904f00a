"""QLoRA: refused by name without bitsandbytes; with it, trains on 4 bits and leaves an adapter."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vla_adapt.adaptation import quantized
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.quantized import QLora, quantize, restore
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.setting import prepare

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra 'qlora'")
METHOD = {"kind": "qlora", "rank": 4, "alpha": 8, "targets": "all_linear"}


def test_without_bitsandbytes_it_is_refused_before_anything_is_opened(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'qlora' needs bitsandbytes, .* pip install 'vla_adapt\[qlora\]'"):
        prepare(make_recipe(str(tmp_path), adaptation=METHOD, mixture=[{"path": "not there"}]))


def hidden(model: OpenVLA) -> torch.Tensor:
    size = model.config.image_sizes[0]
    pixels = torch.randn(2, 6, size, size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 30, 40], [1, 50, 60]])
    with torch.no_grad():
        return model.encode(ids, None, pixels)


@needs_bitsandbytes
def test_quantizing_is_near_and_restoring_exact(random_base: Path):
    model = OpenVLA.from_pretrained(random_base)
    before = hidden(model)
    linears = sum(type(module) is torch.nn.Linear for module in model.modules())
    quantize(model)
    left = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert left[-1] == "language_model.lm_head"
    odd = model.config.towers()[1].mlp_width % 8
    assert all(odd and ".mlp.fc" in name and "fused_featurizer" in name for name in left[:-1])
    error = (hidden(model) - before).norm() / before.norm()
    assert 0.01 < error < 0.5
    restore(model)
    assert torch.equal(hidden(model), before)
    assert sum(type(module) is torch.nn.Linear for module in model.modules()) == linears


@needs_bitsandbytes
def test_only_adapters_train_and_gradients_reach_them(random_base: Path):
    model = OpenVLA.from_pretrained(random_base)
    QLora.model_validate(METHOD).prepare(model, ["left", "right"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    quantized_layers = [m for m in model.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
    assert {layer.weight.dtype for layer in quantized_layers} == {torch.uint8}


@needs_bitsandbytes
def test_a_run_leaves_bundles_of_the_base_itself(
    make_recipe: Callable[..., Recipe], tmp_path: Path, random_base: Path
):
    folder = loop.train(make_recipe(str(tmp_path / "r"), adaptation=METHOD))
    for robot in ("ur5e", "bimanual_panda"):
        bundle = Bundle.load(folder / "bundles" / robot)
        assert any(bool(tensor.any()) for name, tensor in bundle.adapter.items() if "lora_B" in name)
        bundle.verify(OpenVLA.from_pretrained(random_base))
