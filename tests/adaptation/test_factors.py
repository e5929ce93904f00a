"""LoRA factors: PEFT's own merged weights are the judge; patterns, scales and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from vla_adapt.adaptation.factors import Factor, read_factors, write_factors


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)


def adapted(**fields) -> tuple[LoraConfig, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(config, saved tensors, PEFT's own change of each weight)."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["conv", "first", "second"]} | fields)
    small = Small()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    model = get_peft_model(small, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    saved = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    after = model.merge_and_unload().state_dict()
    return config, saved, {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "patterns", [{}, {"rank_pattern": {"first": 2, "conv": 3}, "alpha_pattern": {"second": 5}}]
)
def test_deltas_are_pefts_own_both_ways(rslora: bool, patterns: dict):
    config, saved, wanted = adapted(use_rslora=rslora, **patterns)
    factors = read_factors(config, saved)
    assert factors.keys() == {"conv", "first", "second"}
    for module, factor in factors.items():
        torch.testing.assert_close(factor.delta(), wanted[f"{module}.weight"], atol=1e-6, rtol=1e-5)
    again, tensors = write_factors(factors, rslora)
    assert again.lora_alpha in (5, 6)
    assert tensors.keys() == saved.keys()
    rewritten = read_factors(again, tensors)
    for module, factor in factors.items():
        assert math.isclose(rewritten[module].scale, factor.scale, rel_tol=1e-15)
        assert torch.equal(rewritten[module].b, factor.b)


def test_most_modules_rank_is_the_common_one_and_targets_are_sorted():
    factors = {
        name: Factor(torch.ones(rank, 2), torch.ones(3, rank), 0.3)
        for name, rank in (("z", 4), ("a", 4), ("m", 12))
    }
    config, _ = write_factors(factors, rslora=False)
    assert (config.r, config.rank_pattern) == (4, {"m": 12})
    assert config.target_modules == ["a", "m", "z"]
    assert config.alpha_pattern["m"] == pytest.approx(3.6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"modules_to_save": ["second"]}, "modules_to_save"),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(fields: dict, words: str):
    with pytest.raises(ValueError, match=f"{words}.*only plain LoRA"):
        read_factors(LoraConfig(**fields), {})


def test_broken_tensors_are_named():
    config, saved, _ = adapted()
    key = "base_model.model.first.lora_B.weight"
    with pytest.raises(ValueError, match="'first' has lora_A alone"):
        read_factors(config, {name: t for name, t in saved.items() if name != key})
    with pytest.raises(ValueError, match=r"first\.lora_B\.weight' holds NaN"):
        read_factors(config, saved | {key: torch.full((8, 4), float("nan"))})
    with pytest.raises(ValueError, match="is not base_model"):
        read_factors(config, saved | {"first.lora_embedding_A": torch.ones(2)})
    with pytest.raises(ValueError, match=r"A is \[4, 6\] and B \[8, 3\], but its configuration says rank 4"):
        read_factors(config, saved | {key: torch.ones(8, 3)})
