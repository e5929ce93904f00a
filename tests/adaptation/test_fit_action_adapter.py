"""Fitting an action adapter: planted maps are found, baselines are honest, a seed gives the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.action_adapter import ActionAdapterConfig, Side
from vla_adapt.adaptation.action_pairs import ActionPairs
from vla_adapt.adaptation.fit_action_adapter import FitConfig, fit_action_adapter, solve_ridge
from vla_adapt.embodiment import Embodiment

EPISODES, STEPS = 10, 40


def side(name: str) -> Side:
    mask = ActionUnifier(Embodiment.load(name)).mask
    return Side(name, mask, Statistics.from_samples(np.random.default_rng(0).uniform(-1, 1, (50, 32)), mask))


SOURCE, TARGET = side("ur5e"), side("xarm_joint_delta")


def planted(curve: float = 0.0, noise: float = 0.0, seed: int = 0) -> ActionPairs:
    """Target = linear map of the source (+ `curve` times a product of two of its slots)."""
    draw = np.random.default_rng(seed)
    source = draw.uniform(-1, 1, (EPISODES * STEPS, 32)) * SOURCE.mask
    matrix = draw.normal(size=(32, 32)) * 0.3
    target = source @ matrix.T + 0.1 + curve * (source[:, :1] * source[:, 1:2])
    target = (target + noise * draw.normal(size=target.shape)) * TARGET.mask
    masks = (np.broadcast_to(mask, source.shape) for mask in (SOURCE.mask, TARGET.mask))
    return ActionPairs(source, next(masks), target, next(masks), np.repeat(np.arange(EPISODES), STEPS))


def test_a_linear_map_is_found_exactly():
    adapter, errors = fit_action_adapter(planted(), SOURCE, TARGET, config=FitConfig(ridge=0))
    assert errors.adapter == errors.linear < 1e-5
    assert errors.mean > 0.3
    assert errors.copy > 0.3
    assert adapter.facts["held_out_steps"] == 2 * STEPS
    assert adapter.facts["held_out_errors"]["adapter"] == errors.adapter


def test_an_mlp_finds_what_is_not_linear():
    pairs = planted(curve=1.0)
    _, linear = fit_action_adapter(pairs, SOURCE, TARGET)
    _, errors = fit_action_adapter(
        pairs, SOURCE, TARGET, ActionAdapterConfig(kind="mlp"), FitConfig(steps=300)
    )
    assert errors.linear == linear.adapter > 0.15
    assert errors.adapter < 0.5 * linear.adapter


def test_ridge_pulls_towards_copying_and_leaves_the_mean_alone():
    pairs = planted(noise=0.1)
    matrix, offset = solve_ridge(pairs, SOURCE.mask, TARGET.mask, 1e9)
    wanted = np.diag((SOURCE.mask & TARGET.mask).astype(float))
    assert np.allclose(matrix, wanted, atol=1e-6)
    residual = (pairs.target - pairs.source @ matrix.T - offset)[:, TARGET.mask]
    assert np.allclose(residual.mean(axis=0), 0, atol=1e-9)


def test_steps_that_did_not_record_a_slot_do_not_count_for_it():
    pairs = planted()
    mask = pairs.target_mask.copy()
    mask[::2, 8] = False
    target = pairs.target.copy()
    target[::2, 8] = 50.0
    damaged = ActionPairs(pairs.source, pairs.source_mask, target, mask, pairs.episode)
    _, errors = fit_action_adapter(damaged, SOURCE, TARGET, config=FitConfig(ridge=0))
    assert errors.adapter < 1e-5
    assert errors.mean < 1


def test_baselines_by_hand():
    pairs = planted()
    _, errors = fit_action_adapter(pairs, SOURCE, TARGET, seed=4)
    held = np.isin(pairs.episode, np.random.default_rng(4).permutation(EPISODES)[:2])
    mean = pairs.target[~held].mean(axis=0)
    slots = np.flatnonzero(TARGET.mask)
    assert errors.mean == pytest.approx(np.abs(pairs.target[held] - mean)[:, slots].mean())
    copied = np.tile(mean, (held.sum(), 1))
    copied[:, 6] = pairs.source[held, 6]
    assert errors.copy == pytest.approx(np.abs(pairs.target[held] - copied)[:, slots].mean())


def test_a_seed_gives_the_same_bytes_whatever_else_drew():
    config = ActionAdapterConfig(kind="mlp", hidden=8), FitConfig(steps=20)
    one, _ = fit_action_adapter(planted(), SOURCE, TARGET, *config, seed=1)
    torch.rand(3)
    before = torch.random.get_rng_state()
    same, _ = fit_action_adapter(planted(), SOURCE, TARGET, *config, seed=1)
    other, _ = fit_action_adapter(planted(), SOURCE, TARGET, *config, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    states = [adapter.state_dict() for adapter in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_one_pair_is_too_few():
    pairs = planted()
    with pytest.raises(ValueError, match="1 pair of episodes: wanted at least 2"):
        fit_action_adapter(pairs.select(pairs.episode == 0), SOURCE, TARGET)
