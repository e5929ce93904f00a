"""Predictions over held-out episodes: the right ones, at the right steps, and the same after saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import MemoryDataset, fake_data
from vla_adapt.evaluation import drawn_episodes as module
from vla_adapt.evaluation.drawn_episodes import load_episodes, predict_episodes, save_episodes
from vla_adapt.evaluation.open_loop import cut_windows
from vla_adapt.policy.openvla import OpenVLA


@pytest.fixture(scope="module")
def policy(finished_run: Path, random_base: Path) -> RobotPolicy:
    return Bundle.load(finished_run / "bundles" / "ur5e").attach(OpenVLA.from_pretrained(random_base))


def dataset(name: str, *lengths: int) -> MemoryDataset:
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(0)
    return MemoryDataset(name, robot, [fake_data(robot, rng, length) for length in lengths])


def test_every_step_of_a_short_episode(policy: RobotPolicy):
    data = dataset("one", 5)
    (drawn,) = predict_episodes(policy, [data], episodes=3, windows=50)
    assert (drawn.robot, drawn.dataset, drawn.episode, drawn.rate_hz) == ("ur5e", "one", "0", 20)
    assert drawn.names[0] == "right_ee_position_delta.x"
    assert drawn.units == ("m", "m", "m", "rad", "rad", "rad", "opening")
    recorded = policy.unifiers[0].to_unified(data[0].action)[0][:, :7]
    np.testing.assert_allclose(drawn.true, recorded, rtol=1e-6)
    assert drawn.starts.tolist() == [0, 1, 2, 3, 4]
    asked = policy.predict_windows(cut_windows(policy, [(data, 0, 3)]))
    np.testing.assert_allclose(drawn.predicted[3], asked[0, :, :7], atol=1e-5)


def test_few_of_many_episodes_and_steps(policy: RobotPolicy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_STEPS", 30)
    many = [dataset("first", 2, 2, 2), dataset("second", 2, 0, 40)]
    drawn = predict_episodes(policy, many, episodes=2, windows=4)
    assert [(each.dataset, each.episode) for each in drawn] == [("first", "0"), ("second", "2")]
    assert len(drawn[1].true) == 30
    assert drawn[1].starts.tolist() == [0, 10, 19, 29]
    assert drawn[1].predicted.shape == (4, 4, 7)


def test_saved_and_loaded(finished_run: Path, tmp_path: Path):
    drawn = load_episodes(finished_run / "predictions.npz")
    assert {each.robot for each in drawn} == {"ur5e", "bimanual_panda"}
    save_episodes(drawn, tmp_path / "again.npz")
    again = load_episodes(tmp_path / "again.npz")
    for one, two in zip(drawn, again, strict=True):
        assert (one.names, one.units, one.instruction) == (two.names, two.units, two.instruction)
        np.testing.assert_array_equal(one.predicted, two.predicted)
    assert load_episodes(tmp_path / "absent.npz") == []
