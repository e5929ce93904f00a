"""The probe's classifiers: what each can tell, and what they leave alone."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.invariance.probe_fit import fit_and_tell


def test_both_tell_a_shift_apart_whatever_the_units():
    draw = torch.Generator().manual_seed(0)
    robots = torch.arange(120) % 3
    features = torch.randn(120, 5, generator=draw) + 6 * torch.nn.functional.one_hot(robots, 5)
    features = features * torch.tensor([1e4, 1.0, 1e-3, 1.0, 0.0]) + 100.0
    for kind in ("linear", "mlp"):
        told = fit_and_tell(kind, features[:90], robots[:90], features[90:], 3, hidden=16, seed=0)
        assert (told == robots[90:]).float().mean() > 0.95


def test_only_the_mlp_sees_a_ring():
    draw = torch.Generator().manual_seed(1)
    robots = torch.arange(300) % 2
    angle = 6.28 * torch.rand(300, generator=draw)
    features = torch.stack([angle.cos(), angle.sin()], dim=1) * (1.0 + 2.0 * robots[:, None])
    told = {
        kind: fit_and_tell(kind, features[:200], robots[:200], features[200:], 2, hidden=32, seed=0)
        for kind in ("linear", "mlp")
    }
    right = {kind: (found == robots[200:]).float().mean().item() for kind, found in told.items()}
    assert right["mlp"] > 0.98
    assert right["linear"] < 0.75


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_same_seed_same_answer_and_the_global_generator_stays(kind: str):
    features, robots = torch.randn(40, 4), torch.arange(40) % 2
    before = torch.random.get_rng_state()
    with torch.no_grad():
        first, again = (fit_and_tell(kind, features, robots, features, 2, 8, seed=3) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
