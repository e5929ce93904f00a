"""Pairs of actions: which episodes belong together, which steps, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vla_adapt.actions.normalize import Normalizer
from vla_adapt.adaptation.action_pairs import PairingConfig, pair_actions, warp
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.source import EpisodeData, MemoryDataset

ARM, BASE = Embodiment.load("ur5e"), Embodiment.load("mobile_base")


def dataset(actions: list[np.ndarray], words: list[str], robot: Embodiment = ARM) -> MemoryDataset:
    episodes = [
        EpisodeData(action.astype(np.float32), {}, text) for action, text in zip(actions, words, strict=True)
    ]
    return MemoryDataset(f"{robot.name}_made", robot, episodes)


def normalizer(data: MemoryDataset) -> Normalizer:
    return Normalizer(robot_statistics([data])[data.embodiment.name].action)


def ramp(steps: int, robot: Embodiment = ARM) -> np.ndarray:
    """Every number of the action rises from -1 to 1."""
    middles = (np.arange(steps) + 0.5) / steps * 2 - 1
    return np.repeat(middles[:, None], robot.action_dim, axis=1)


def test_paired_steps_stay_together_in_each_robots_own_normalized_space():
    draw = np.random.default_rng(0)
    ours = [draw.uniform(-1, 1, (length, ARM.action_dim)) for length in (5, 9)]
    theirs = [draw.uniform(-1, 1, (length, BASE.action_dim)) for length in (5, 9)]
    data = dataset(ours, ["Push it.", "lift"]), dataset(theirs, ["push  it", "lift"], BASE)
    each = normalizer(data[0]), normalizer(data[1])
    pairs = pair_actions([data[0]], [data[1]], *each, PairingConfig(episodes="paired"))
    assert pairs.episode.tolist() == [0] * 5 + [1] * 9
    assert pairs.source_mask[0].nonzero()[0].tolist() == list(range(7))
    assert pairs.target_mask[0].nonzero()[0].tolist() == [28, 29, 30]
    assert np.abs(pairs.source).max() <= 1
    wanted = np.concatenate(theirs).astype(np.float32)
    got = each[1].denormalize(pairs.target)[:, 28:31]
    inside = (np.abs(pairs.target) < 1)[:, 28:31]
    assert np.allclose(got[inside], wanted[inside], atol=1e-6)
    assert (pairs.target[:, :28] == 0).all()


@pytest.mark.parametrize("alignment", ["time", "dtw"])
def test_episodes_of_one_instruction_are_aligned(alignment: str):
    slow, fast = dataset([ramp(40), ramp(30)], ["a", "b"]), dataset([ramp(12), ramp(11)], ["b", "a"])
    config = PairingConfig(alignment=alignment)  # type: ignore[arg-type]
    pairs = pair_actions([slow], [fast], normalizer(slow), normalizer(fast), config)
    assert pairs.episode.tolist() == [0] * 12 + [1] * 11
    assert np.abs(pairs.source - pairs.target)[:, :6].max() < 0.08
    assert pairs.source[0, 0] < -0.8
    assert pairs.source[11, 0] > 0.8


def test_an_instruction_pairs_as_often_as_both_robots_did_it():
    one, other = dataset([ramp(4)] * 3, ["a", "a", "b"]), dataset([ramp(4)] * 4, ["a", "c", "a", "a"])
    pairs = pair_actions([one], [other], normalizer(one), normalizer(other))
    assert pairs.episodes == 2


def test_dtw_follows_a_pause_that_time_does_not():
    moving = ramp(20)
    paused = np.concatenate([moving[:10], np.repeat(moving[9:10], 20, axis=0), moving[10:]])
    one, other = dataset([paused], ["a"]), dataset([moving], ["a"])
    shared = normalizer(other)
    errors = {}
    for alignment in ("time", "dtw"):
        pairs = pair_actions([one], [other], shared, shared, PairingConfig(alignment=alignment))  # type: ignore[arg-type]
        errors[alignment] = np.abs(pairs.source - pairs.target)[:, :6].mean()
    assert errors["dtw"] < 1e-6 < 0.1 < errors["time"]


def test_warp_is_the_cheapest_monotone_way():
    draw = np.random.default_rng(1)
    first, second = draw.normal(size=(4, 2)), draw.normal(size=(5, 2))
    path = warp(first, second)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [3, 4]
    moves = {tuple(move) for move in np.diff(path, axis=0).tolist()}
    assert moves <= {(1, 1), (1, 0), (0, 1)}
    cost = np.abs(first[:, None] - second[None]).sum(axis=2)
    assert cost[tuple(path.T)].sum() == pytest.approx(cheapest(cost), abs=1e-4)


def cheapest(cost: np.ndarray) -> float:
    """Over all monotone ways, one by one."""
    best = np.inf
    for moves in itertools.chain.from_iterable(
        itertools.product([(1, 1), (1, 0), (0, 1)], repeat=length) for length in range(4, 8)
    ):
        places = np.cumsum([(0, 0), *moves], axis=0)
        if places[-1].tolist() == [3, 4] and (places <= [3, 4]).all():
            best = min(best, cost[tuple(places.T)].sum())
    return float(best)


def test_refusals_say_what_is_wrong():
    two, three = dataset([ramp(4)] * 2, ["a", "b"]), dataset([ramp(4)] * 3, ["a", "b", "c"])
    longer = dataset([ramp(4), ramp(5)], ["a", "b"])
    other = dataset([ramp(4)] * 2, ["a", "c"])
    wheels = dataset([ramp(4, BASE)] * 2, ["a", "b"], BASE)
    paired = PairingConfig(episodes="paired")

    def pair(one: MemoryDataset, another: MemoryDataset, config: PairingConfig):
        return pair_actions([one], [another], normalizer(one), normalizer(another), config)

    with pytest.raises(ValueError, match="2 of one robot and 3 of the other"):
        pair(two, three, paired)
    with pytest.raises(ValueError, match=r"episode 1 .*episode 1 differ in steps \(4 and 5\)"):
        pair(two, longer, paired)
    with pytest.raises(ValueError, match=r"differ in instruction \('b' and 'c'\)"):
        pair(two, other, paired)
    with pytest.raises(ValueError, match="no instruction in common"):
        pair(two, dataset([ramp(4)], ["z"]), PairingConfig())
    with pytest.raises(ValueError, match="share no slot that DTW could compare; use alignment: time"):
        pair(two, wheels, PairingConfig(alignment="dtw"))
