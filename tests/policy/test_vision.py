"""Vision towers against the original's features; the block that never runs is not built."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vla_adapt.policy.tiny import tiny_config
from vla_adapt.policy.vision import DinoAttention, Projector, VisionBackbone


def test_parity_of_both_towers_and_the_projector(parity, parity_model):
    pixel_values = torch.from_numpy(parity.inputs["pixel_values"])
    with torch.no_grad():
        dino, siglip = parity_model.vision_backbone.patches(pixel_values)
        projected = parity_model.project(pixel_values)
    np.testing.assert_allclose(dino, parity.expected["dino_patches"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(siglip, parity.expected["siglip_patches"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(projected, parity.expected["projected"], atol=5e-5, rtol=0)


def test_only_blocks_that_run_are_built():
    towers = tiny_config().towers()
    backbone = VisionBackbone(towers)
    assert len(backbone.featurizer.encoder.layer) == towers[0].depth - 1 == 2
    assert len(backbone.fused_featurizer.encoder.layers) == 2
    backbone(torch.zeros(1, 6, 84, 84)).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_linear_layers_of_a_dino_block_have_the_same_names_on_every_transformers():
    block = VisionBackbone(tiny_config().towers()).featurizer.encoder.layer[0]
    linears = [name for name, part in block.named_modules() if isinstance(part, nn.Linear)]
    assert linears == [*(f"attention.{part}_proj" for part in "qkvo"), "mlp.fc1", "mlp.fc2"]


def test_attention_of_transformers_5_17_is_multi_head_attention():
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    query, key, value = (nn.Linear(8, 8) for _ in range(3))
    with torch.no_grad():
        reference.in_proj_bias.normal_()
        for part, weight, bias in zip(
            (query, key, value),
            reference.in_proj_weight.chunk(3),
            reference.in_proj_bias.chunk(3),
            strict=True,
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    inner = SimpleNamespace(query=query, key=key, value=value, num_attention_heads=2)
    ours = DinoAttention(SimpleNamespace(attention=inner, output=SimpleNamespace(dense=reference.out_proj)))
    hidden = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(hidden), reference(hidden, hidden, hidden)[0])


def test_towers_with_different_grids_are_refused():
    dino, siglip = tiny_config().towers()
    with pytest.raises(ValueError, match="6 and 5 patches a side"):
        VisionBackbone((dino, dataclasses.replace(siglip, image_size=70)))


def test_projector_has_the_original_widths():
    projector = Projector(128, 32)
    assert projector.fc1.weight.shape == (512, 128)
    assert projector(torch.zeros(2, 5, 128)).shape == (2, 5, 32)
