"""The road end to end on fake robots: a finished run, served by the real command, driven by clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.serving.client import Client, RobotServerError

ROBOTS = ("ur5e", "bimanual_panda")


@pytest.fixture(scope="module")
def url(finished_run: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `vla-adapt serve` process over the finished run."""
    ready = tmp_path_factory.mktemp("serve") / "url"
    command = [
        sys.executable, "-m", "vla_adapt.cli", "serve", "--base", str(random_base), "--adapters",
        str(finished_run / "bundles"), "--port", "0", "--threads", "1", "--ready-file", str(ready),
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not ready.is_file():
            assert process.poll() is None, "the server ended early"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.1)
        yield ready.read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def golden(finished_run: Path, robot: str) -> tuple[dict, np.ndarray]:
    bundle = Bundle.load(finished_run / "bundles" / robot)
    assert bundle.golden is not None
    return bundle.golden.observation(bundle.observation.camera), bundle.golden.actions


@pytest.mark.slow
def test_our_client_gets_the_golden_actions_of_each_robot(url: str, finished_run: Path):
    for robot in ROBOTS:
        observation, actions = golden(finished_run, robot)
        with Client(url, robot=robot) as client:
            assert client.metadata["action_dim"] == actions.shape[1]
            assert np.allclose(client.act(observation), actions, atol=1e-4)


@pytest.mark.slow
def test_unchanged_openpi_client_gets_a_chunk_for_two_robots(url: str, finished_run: Path):
    websocket = pytest.importorskip("openpi_client.websocket_client_policy")
    address = url.replace("http://", "ws://")
    for robot in ROBOTS:
        observation, actions = golden(finished_run, robot)
        policy = websocket.WebsocketClientPolicy(f"{address}/robots/{robot}", None)
        assert policy.get_server_metadata()["robot"] == robot
        reply = policy.infer(observation)
        assert reply["actions"].shape == actions.shape
        assert np.allclose(reply["actions"], actions, atol=1e-4)


@pytest.mark.slow
def test_mistakes_reach_the_client_in_one_line(url: str, finished_run: Path):
    observation, _ = golden(finished_run, "ur5e")
    with pytest.raises(RobotServerError, match="ur5e") as unknown:
        Client(url, robot="ur5")
    assert unknown.value.code == "unknown_robot"
    with Client(url, robot="ur5e") as client:
        with pytest.raises(RobotServerError) as missing:
            client.act({**observation, "images": {}})
        assert "primary" in str(missing.value)
        with pytest.raises(RobotServerError) as width:
            client.act({**observation, "state": observation["state"][:3]})
        assert "3" in str(width.value)
        assert "8" in str(width.value)
        for caught in (missing, width):
            assert "\n" not in str(caught.value)
            assert "Traceback" not in str(caught.value)
        assert client.act(observation).shape[1] == 7, "the connection stays usable"
