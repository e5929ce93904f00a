"""Making, saving and loading heads; both kinds learn a handful of windows."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_adapt.policy.heads import HeadConfig, load_head, make_head, save_head
from vla_adapt.policy.tiny import tiny_config

CONFIGS = [
    HeadConfig(kind="parallel", horizon=4),
    HeadConfig(kind="parallel", horizon=2, proprio=False, hidden=48),
    HeadConfig(kind="parallel", horizon=2, placeholders="number"),
    HeadConfig(kind="tokens", horizon=1, proprio=False),
    HeadConfig(kind="tokens", horizon=2, proprio=True),
    HeadConfig(kind="readout", horizon=4, grid=3),
    HeadConfig(kind="flow", horizon=3, proprio=False, hidden=48, flow_layers=2, flow_steps=4, noise_seed=5),
]


def ids(config: HeadConfig) -> str:
    return f"{config.kind}-{config.horizon}-{'proprio' if config.proprio else 'blind'}-{config.placeholders}"


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_a_saved_head_predicts_the_same(tiny_model, make_batch, tmp_path, config):
    head = make_head(config, tiny_model, seed=1)
    save_head(head, tmp_path)
    loaded = load_head(tmp_path, tiny_model)
    assert loaded.config == config
    batch = make_batch(horizon=config.horizon)
    assert torch.equal(loaded.predict(tiny_model, batch), head.predict(tiny_model, batch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.json", "head.safetensors"]


def test_the_seed_decides_the_weights(tiny_model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, same, other = (make_head(CONFIGS[0], tiny_model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.placeholders, same.placeholders)
    assert not torch.equal(first.placeholders, other.placeholders)


def test_loading_refuses_what_does_not_fit(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"no head\.json"):
        load_head(tmp_path, tiny_model)
    save_head(make_head(CONFIGS[0], tiny_model), tmp_path)
    state = load_file(tmp_path / "head.safetensors")
    save_file({**state, "fc1.bias": torch.zeros(3)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"does not fit head\.json"):
        load_head(tmp_path, tiny_model)
    raw = tiny_config()
    raw.text["hidden_size"] = 64
    tiny_model.config = raw
    with pytest.raises(ValueError, match="model of width 128, this one has 64"):
        load_head(tmp_path, tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3], CONFIGS[4]], ids=ids)
def test_a_handful_of_windows_is_learned(tiny_model, make_batch, config):
    batch = make_batch(
        horizon=config.horizon, robots=("franka_panda", "mobile_panda", "franka_panda"), padded_steps=0
    )
    head = make_head(config, tiny_model, seed=0)
    tiny_model.train()
    optimizer = torch.optim.AdamW([*tiny_model.parameters(), *head.parameters()], lr=2e-3, fused=True)
    for _ in range(120):
        loss = head(tiny_model, batch).loss_per_sample.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tiny_model.eval()
    error = (head.predict(tiny_model, batch) - batch.action).abs()[batch.action_mask]
    assert error.mean() < 0.05
