"""Tensor names: the two directions undo each other, for whole checkpoints and their fused q, k, v."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.naming import original_module, our_modules, to_original, to_ours


def test_every_used_tensor_of_the_tiny_model_survives_the_round_trip(tiny_model):
    state = tiny_model.state_dict()
    back: dict[str, torch.Tensor] = {}
    for name, tensor in to_original(state).items():
        back |= to_ours(name, tensor)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_fused_attention_is_split_in_the_order_q_k_v():
    tensor = torch.arange(12.0).reshape(6, 2)
    ours = to_ours("vision_backbone.fused_featurizer.blocks.11.attn.qkv.weight", tensor)
    stem = "vision_backbone.fused_featurizer.encoder.layers.11.self_attn"
    assert list(ours) == [f"{stem}.{part}_proj.weight" for part in "qkv"]
    assert torch.equal(ours[f"{stem}.k_proj.weight"], tensor[2:4])


@pytest.mark.parametrize("name", ["featurizer.norm.weight", "fused_featurizer.attn_pool.latent"])
def test_tensors_that_never_run_have_no_counterpart(name):
    assert to_ours(f"vision_backbone.{name}", torch.zeros(3)) == {}


def test_adapter_weights_are_refused_by_name():
    name = "vision_backbone.featurizer.encoder.layer.0.attention.q_proj.lora_A.default.weight"
    with pytest.raises(ValueError, match="merge or unload adapters"):
        to_original({name: torch.zeros(2, 2)})


def test_module_names_go_both_ways():
    fused = "vision_backbone.featurizer.blocks.7.attn.qkv"
    parts = our_modules(fused)
    assert parts[1] == "vision_backbone.featurizer.encoder.layer.7.attention.k_proj"
    assert [original_module(part) for part in parts] == [(fused, 0), (fused, 1), (fused, 2)]
    patches = "vision_backbone.fused_featurizer.patch_embed.proj"
    for original in (patches, "language_model.lm_head", "projector.fc1"):
        (ours,) = our_modules(original)
        assert original_module(ours) == (original, None)
    assert our_modules("vision_backbone.fused_featurizer.attn_pool.kv") == ()
    with pytest.raises(ValueError, match="no counterpart in the original"):
        original_module("vision_backbone.featurizer.encoder.extra")
