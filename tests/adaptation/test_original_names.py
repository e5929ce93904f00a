"""Fusing and splitting q, k, v adapters: exact, whatever part is adapted, and each the other's undoing."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from vla_adapt.adaptation.factors import Factor
from vla_adapt.adaptation.original_names import factors_to_original, factors_to_ours

OURS = "vision_backbone.featurizer.encoder.layer.1.attention."
FUSED = "vision_backbone.featurizer.blocks.1.attn.qkv"
PARTS = [subset for size in (1, 2, 3) for subset in combinations("qkv", size)]


def factor(seed: int, rank: int = 2, scale: float = 0.5) -> Factor:
    draw = torch.Generator().manual_seed(seed)
    return Factor(torch.randn(rank, 5, generator=draw), torch.randn(4, rank, generator=draw), scale)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("scales", [(0.5, 0.5, 0.5), (0.5, 2.0, 0.25)])
def test_fused_delta_stacks_the_parts(parts: tuple[str, ...], scales: tuple[float, ...]):
    given = {
        f"{OURS}{p}_proj": factor(i, rank=2 + i, scale=scales[i]) for i, p in enumerate("qkv") if p in parts
    }
    fused = factors_to_original(given)
    assert list(fused) == [FUSED]
    assert fused[FUSED].rank == sum(one.rank for one in given.values())
    wanted = torch.cat([
        given[f"{OURS}{p}_proj"].delta() if p in parts else torch.zeros(4, 5) for p in "qkv"
    ])  # fmt: skip
    torch.testing.assert_close(fused[FUSED].delta(), wanted, atol=1e-6, rtol=1e-6)
    back, dropped = factors_to_ours(fused, idle=())
    assert back.keys() == given.keys()
    assert dropped == []
    for name, one in given.items():
        assert torch.equal(back[name].a, one.a)
        torch.testing.assert_close(back[name].delta(), one.delta(), atol=1e-6, rtol=1e-6)


def test_splitting_shares_a_and_fusing_again_gives_the_original_back():
    whole = Factor(factor(0, rank=3).a, torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), 0.5)
    ours, _ = factors_to_ours({FUSED: whole}, idle=())
    assert [one.rank for one in ours.values()] == [3, 3, 3]
    torch.testing.assert_close(torch.cat([one.delta() for one in ours.values()]), whole.delta())
    again = factors_to_original(ours)[FUSED]
    assert torch.equal(again.a, whole.a)
    assert torch.equal(again.b, whole.b)


def test_an_untrained_fused_adapter_keeps_all_parts():
    ours, _ = factors_to_ours({FUSED: Factor(torch.ones(2, 5), torch.zeros(12, 2), 1.0)}, idle=())
    assert len(ours) == 3


def test_other_modules_are_renamed_and_idle_ones_left_out():
    given = {
        "vision_backbone.fused_featurizer.patch_embed.proj": factor(0),
        "language_model.lm_head": factor(1),
        "projector.fc2": factor(2),
        "vision_backbone.fused_featurizer.attn_pool.kv": factor(3),
    }
    ours, dropped = factors_to_ours(given, idle={"vision_backbone.fused_featurizer.attn_pool.kv"})
    assert dropped == ["vision_backbone.fused_featurizer.attn_pool.kv"]
    embedding = "vision_backbone.fused_featurizer.embeddings.patch_embedding"
    assert list(ours) == [embedding, "language_model.lm_head", "projector.fc2"]
    assert factors_to_original(ours) == {name: given[name] for name in list(given)[:3]}


def test_a_module_the_original_lacks_is_refused():
    with pytest.raises(ValueError, match="no counterpart in the original"):
        factors_to_original({"vision_backbone.featurizer.encoder.extra": factor(0)})
