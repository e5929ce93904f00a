"""Closed loop without a simulator: seeds shared out, outcomes in order, a server's refusals in one line."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla_adapt.evaluation import closed_loop as module
from vla_adapt.evaluation.closed_loop import closed_loop, load_results, save_results, served_robots
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.server import ServerThread
from vla_adapt.sim.worlds import World

SEED = 40


class FakeWorld(World):
    """Succeeds after `seed % 3 + 1` steps where the seed is even, else never; at most 5 steps."""

    prompt, max_steps = "lift the cube", 5

    def __init__(self, seed: int) -> None:
        self.closed = False
        self.reset(seed)

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def observe(self) -> dict[str, Any]:
        return {"images": {"primary": self.render("primary")}, "state": np.zeros(8), "prompt": self.prompt}

    def render(self, camera: str) -> np.ndarray:
        return np.full((16, 16, 3), self.seed, np.uint8)

    def step(self, action: np.ndarray) -> None:
        assert action.shape == (7,)
        self.steps += 1

    def success(self) -> bool:
        return self.seed % 2 == 0 and self.steps > self.seed % 3

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread(FakeBank({"ur5e": 7}), token="s3") as running:
        yield running


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorld]:
    """The worlds that were made, in threads of this process instead of processes."""
    made: list[FakeWorld] = []

    def make_world(robot: str, seed: int) -> FakeWorld:
        made.append(FakeWorld(seed))
        return made[-1]

    monkeypatch.setattr(module, "make_world", make_world)
    monkeypatch.setattr(
        module, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers)
    )
    return made


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_every_seed_once_and_the_same_whoever_drives(
    server: ServerThread, worlds: list[FakeWorld], tmp_path: Path, workers: int
):
    told: list[tuple[int, int]] = []
    result = closed_loop(
        "ur5e", server.url, episodes=5, seed=SEED, execute=2, workers=workers, label="x", token="s3",
        frames_dir=tmp_path, progress=lambda done, won: told.append((done, won)),
    )  # fmt: skip
    assert result.outcomes == [True, False, True, False, True]
    assert result.steps == [2, 5, 1, 5, 3]
    assert (result.episodes, result.successes, result.seed) == (5, 3, SEED)
    assert told[-1] == (5, 3)
    assert len(worlds) == min(workers, 5)
    assert all(world.closed for world in worlds)
    strip = np.asarray(Image.open(tmp_path / "ur5e.png"))
    assert (strip == SEED).all()
    save_results([result], tmp_path / "more" / "r.json")
    assert load_results(tmp_path / "more" / "r.json") == [result]


def test_refusals_are_told_before_any_world_is_built(server: ServerThread, worlds: list[FakeWorld]):
    with pytest.raises(ValueError, match="ur5: unknown_robot: no robot 'ur5'; this server has: ur5e"):
        closed_loop("ur5", server.url, episodes=1, token="s3")
    with pytest.raises(ValueError, match="ur5e: unauthorized: missing or wrong token"):
        closed_loop("ur5e", server.url, episodes=1)
    with pytest.raises(ValueError, match="ur5e: connection_lost: cannot connect"):
        closed_loop("ur5e", "http://127.0.0.1:1", episodes=1)
    assert not worlds


def test_a_failure_on_the_way_is_told_and_worlds_are_closed(worlds: list[FakeWorld]):
    bank = FakeBank({"ur5e": 7})
    bank.failure = ValueError("a quaternion of length 0")
    with ServerThread(bank) as server, pytest.raises(ValueError, match="ur5e: bad_observation: a quaternion"):
        closed_loop("ur5e", server.url, episodes=2)
    assert worlds
    assert all(world.closed for world in worlds)


def test_served_robots(server: ServerThread, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not asked for what is on this machine
    monkeypatch.delenv("no_proxy", raising=False)
    assert served_robots(server.url, token="s3") == ["ur5e"]
    with pytest.raises(ValueError, match=r"refuses .unauthorized: missing or wrong token"):
        served_robots(server.url)
    with pytest.raises(ValueError, match=r"no policy server answers .*; start it with vla-adapt serve"):
        served_robots("http://127.0.0.1:1")


def test_a_server_of_another_kind_is_none():
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        with pytest.raises(ValueError, match="no policy server answers"):
            served_robots(f"http://127.0.0.1:{other.server_port}")
