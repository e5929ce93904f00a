"""The probe: chance on noise, everything where there is everything, and no leak through episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vla_adapt.invariance.probe import ProbeConfig, ProbeResult, probe
from vla_adapt.invariance.probe_fit import fit_and_tell

ROBOTS = ("franka_panda", "ur5e", "widowx")


def rows(episodes: int = 10, steps: int = 10, robots: int = 3) -> tuple[list[str], list[str]]:
    """Robot and episode of every row."""
    places = [(robot, episode) for robot in range(robots) for episode in range(episodes)]
    pairs = [place for place in places for _ in range(steps)]
    return [ROBOTS[robot] for robot, _ in pairs], [f"{robot}/{episode}" for robot, episode in pairs]


def test_everything_where_robots_are_far_apart():
    robots, episodes = rows()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 8)) + 8 * np.eye(8)[[ROBOTS.index(robot) for robot in robots]]
    result = probe(features, robots, episodes)
    for score in (result.linear, result.mlp):
        assert score.accuracy > 0.99
        assert 0.8 < score.low < score.accuracy <= score.high <= 1.0
        assert np.allclose(score.confusion, np.eye(3), atol=0.05)
    assert (result.rows, result.episodes, result.robots) == (300, 30, ROBOTS)


def test_chance_on_noise_with_unequal_robots():
    robots, episodes = rows()
    kept = [row for row in range(300) if robots[row] != "ur5e" or row % 3 == 0]
    features = np.random.default_rng(1).normal(size=(len(kept), 8))
    result = probe(features, [robots[row] for row in kept], [episodes[row] for row in kept])
    for score in (result.linear, result.mlp):
        assert score.low < 1 / 3 < score.high
        assert abs(score.accuracy - 1 / 3) < 0.1


@pytest.mark.slow
def test_intervals_cover_chance_on_noise():
    robots, episodes = rows(episodes=6, steps=8, robots=2)
    covered = []
    for seed in range(10):
        features = np.random.default_rng(seed).normal(size=(96, 4))
        result = probe(features, robots, episodes, ProbeConfig(folds=3, seed=seed))
        covered += [score.low <= 0.5 <= score.high for score in (result.linear, result.mlp)]
    assert sum(covered) >= 17


def test_not_fooled_by_what_is_constant_in_an_episode():
    """Every episode has its own light, which says nothing about the robot of another episode."""
    robots, episodes = rows(episodes=12, steps=10, robots=2)
    rng = np.random.default_rng(2)
    light = {name: rng.normal(size=16) for name in sorted(set(episodes))}
    features = np.stack([light[name] for name in episodes]) + 0.1 * rng.normal(size=(240, 16))
    result = probe(features, robots, episodes)
    for score in (result.linear, result.mlp):
        assert score.low < 0.5 < score.high
    step_wise = torch.from_numpy(np.random.default_rng(0).permutation(240))
    values, labels = torch.from_numpy(features).float(), torch.tensor([ROBOTS.index(name) for name in robots])
    train, test = step_wise[:192], step_wise[192:]
    told = fit_and_tell("mlp", values[train], labels[train], values[test], 2, 64, seed=0)
    assert (told == labels[test]).float().mean() > 0.95, "split by step the same classifier would be fooled"


def test_same_input_same_result_and_json():
    robots, episodes = rows(episodes=5, steps=4)
    features = np.random.default_rng(3).normal(size=(60, 4))
    result, again = probe(features, robots, episodes), probe(features, robots, episodes)
    assert result == again
    assert ProbeResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.linear.text.endswith("]")


def test_refusals():
    robots, episodes = rows(episodes=5, steps=2)
    features = np.zeros((30, 2))
    with pytest.raises(ValueError, match=r"rows of 1 robot\(s\)"):
        probe(features, ["ur5e"] * 30, episodes)
    with pytest.raises(ValueError, match="wants at least 6"):
        probe(features, robots, episodes, ProbeConfig(folds=6))
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        probe(features, robots, episodes)
