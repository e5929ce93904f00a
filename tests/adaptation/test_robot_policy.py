"""One robot's policy: what it refuses, what it reads, and how two of its chunks are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.policy.openvla import OpenVLA


@pytest.fixture(scope="module")
def policy(tiny_bundle: Path, random_base: Path) -> RobotPolicy:
    """Of the Franka Panda: position, rotation (Euler angles) and gripper."""
    return Bundle.load(tiny_bundle).attach(OpenVLA.from_pretrained(random_base))


@pytest.fixture
def observation() -> dict:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return {"images": {"primary": image}, "state": np.full(8, 0.1), "prompt": "lift the cube"}


def test_the_same_observation_gives_the_same_chunk(policy: RobotPolicy, observation: dict):
    first, again = policy.act(observation), policy.act(observation)
    assert first.shape == (policy.horizon, 7)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert policy.difference(first, again) == 0.0


def test_the_state_is_read(policy: RobotPolicy, observation: dict):
    assert policy.reads_state
    other = policy.act(observation | {"state": np.full(8, 0.3)})
    assert policy.difference(policy.act(observation), other) > 0
    with pytest.raises(ValueError, match="has no 'state'; wanted 8 numbers"):
        policy.act({name: value for name, value in observation.items() if name != "state"})
    with pytest.raises(ValueError, match=r"proprio has width 7"):
        policy.act(observation | {"state": np.full(7, 0.1)})
    with pytest.raises(ValueError, match="lacks camera 'primary'"):
        policy.act(observation | {"images": {}})


def test_differences_are_in_half_ranges_wherever_the_chunks_lie(policy: RobotPolicy):
    """Also beyond q01..q99, where two chunks that are clipped would look the same."""
    low, high = (
        float(bound[0]) / 0.05 for bound in (policy.action_statistics.q01, policy.action_statistics.q99)
    )
    half, center = (high - low) / 2, (high + low) / 2
    first = np.zeros((4, 7), np.float32)
    for place in (0.0, 1.5, -9.0):
        first[:, 0] = center + place * half
        second = first.copy()
        second[2, 0] += 0.25 * half
        assert policy.difference(first, second) == pytest.approx(0.25, rel=1e-4)
    second[2, 6] = 1.0  # from half open to closed
    assert policy.difference(first, second) == pytest.approx(0.5)


def test_what_cannot_be_compared_differs_without_bound(policy: RobotPolicy):
    chunk = np.zeros((4, 7), np.float32)
    assert policy.difference(chunk, chunk[:3]) == np.inf
    assert policy.difference(chunk, np.full_like(chunk, np.nan)) == np.inf
