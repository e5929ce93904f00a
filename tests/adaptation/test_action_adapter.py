"""The action adapter: starts as a copy, keeps to the robots' slots, round trips, refuses others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.action_adapter import ActionAdapter, ActionAdapterConfig, Side
from vla_adapt.embodiment import Embodiment

ARM, JOINTS = Embodiment.load("ur5e"), Embodiment.load("xarm_joint_delta")


def statistics(robot: Embodiment, seed: int) -> Statistics:
    draw = np.random.default_rng(seed)
    mask = ActionUnifier(robot).mask
    spread = draw.uniform(0.1, 2.0, 32)
    return Statistics.from_samples(draw.normal(size=(200, 32)) * spread + draw.normal(size=32), mask)


def side(robot: Embodiment, seed: int = 0) -> Side:
    return Side.of(robot, statistics(robot, seed))


def scrambled(config: ActionAdapterConfig | None = None) -> ActionAdapter:
    """An adapter with random weights in every place that may have some."""
    adapter = ActionAdapter(side(ARM, 1), side(JOINTS, 2), config)
    draw = torch.Generator().manual_seed(0)
    adapter.set_linear(torch.randn(32, 32, generator=draw), torch.randn(32, generator=draw))
    if adapter.mlp is not None:
        for parameter in adapter.mlp.parameters():
            torch.nn.init.normal_(parameter, generator=draw)
    return adapter.eval()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_fresh_adapter_copies_the_shared_slots(kind: str):
    adapter = ActionAdapter(side(ARM), side(JOINTS), ActionAdapterConfig(kind=kind))  # type: ignore[arg-type]
    values = torch.rand(5, 3, 32)
    mapped = adapter(values)
    assert torch.equal(mapped[..., 6], values[..., 6])
    mapped[..., 6] = 0
    assert not mapped.any()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_only_the_robots_own_slots_are_read_and_written(kind: str):
    adapter = scrambled(ActionAdapterConfig(kind=kind, hidden=8))  # type: ignore[arg-type]
    values = torch.rand(4, 32)
    mapped = adapter(values)
    assert (mapped[:, ~adapter.target_mask] == 0).all()
    assert (mapped[:, adapter.target_mask] != 0).all()
    noisy = values + 7 * (~adapter.source_mask)
    assert torch.equal(adapter(noisy), mapped)
    assert not torch.equal(adapter(values + 0.1 * adapter.source_mask), mapped)


def test_actions_in_si_units_go_through_both_robots_statistics():
    adapter = scrambled()
    normalized = np.random.default_rng(3).uniform(-1, 1, (6, 32)) * adapter.source.mask
    values = adapter.source.normalizer.denormalize(normalized)
    wanted = adapter(torch.from_numpy(normalized).float()).double().detach().numpy()
    assert np.allclose(adapter.map_actions(values), adapter.target.normalizer.denormalize(wanted), atol=1e-5)


def test_the_linear_part_between_other_statistics_is_the_same_map_in_si_units():
    adapter = scrambled()
    source = Normalizer(statistics(ARM, 11), adapter.source.mask)
    target = Normalizer(statistics(JOINTS, 12), adapter.target.mask)
    matrix, offset = adapter.linear_between(source, target)
    values = adapter.source.normalizer.denormalize(np.random.default_rng(3).uniform(-0.5, 0.5, (6, 32)))
    inside = (values - source.center) / source.half_range * source.mask
    got = target.denormalize(inside @ matrix.T + offset)
    assert np.allclose(got, adapter.map_actions(values), atol=1e-4)
    same, _ = adapter.linear_between(adapter.source.normalizer, adapter.target.normalizer)
    assert np.allclose(same, adapter.linear.weight.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_save_and_load(kind: str, tmp_path: Path):
    adapter = scrambled(ActionAdapterConfig(kind=kind, hidden=8))  # type: ignore[arg-type]
    adapter.facts = {"fitted_steps": 3}
    adapter.save(tmp_path)
    again = ActionAdapter.load(tmp_path, source=ARM, target=JOINTS)
    values = torch.rand(4, 32)
    assert torch.equal(again(values), adapter(values))
    assert again.source.statistics == adapter.source.statistics
    assert (again.config, again.facts, again.target.robot) == (adapter.config, adapter.facts, JOINTS.name)


def test_loading_refuses_what_does_not_fit(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no action_adapter\.json"):
        ActionAdapter.load(tmp_path)
    scrambled().save(tmp_path)
    with pytest.raises(ValueError, match="source is 'ur5e', wanted 'xarm_joint_delta'"):
        ActionAdapter.load(tmp_path, source=JOINTS)
    file = tmp_path / "action_adapter.json"
    tree = json.loads(file.read_text())
    tree["target"]["slots"] = [6, 7, 8]
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"target 'xarm_joint_delta' had slots \[6, 7, 8\]"):
        ActionAdapter.load(tmp_path, target=JOINTS)
    tree["config"] = {"kind": "mlp", "hidden": 8}
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"safetensors does not fit action_adapter\.json"):
        ActionAdapter.load(tmp_path)
    file.write_text(json.dumps(tree | {"format": 9}))
    with pytest.raises(ValueError, match="format 9, this vla_adapt reads 1"):
        ActionAdapter.load(tmp_path)
