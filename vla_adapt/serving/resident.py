"""What the server needs of the policies it holds (`Bank`), and a fake of it for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_adapt.serving.protocol import ObservationError


@runtime_checkable
class Bank(Protocol):
    """Policies of several robots on one resident base model."""

    def robots(self) -> dict[str, dict[str, Any]]:
        """Robot name -> its card: what clients see as metadata (plain numbers, strings, lists and dicts).

        Called at every request, also from other threads: keep it fast and free of side effects.
        Keys the server itself enforces, all optional: `cameras` {name: {"required": bool}}, `state_dim` int
        (width of the native proprio vector; None: not read, any is accepted), `state_required` bool.
        """
        ...

    def act(self, robot: str, observation: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
        """Native actions [H, D] and timings in milliseconds. Called from one thread only.

        Args:
            robot: a key of `robots()`.
            observation: `images` {camera: uint8 [h, w, 3]}, `prompt` str, and `state` float32 [P] if sent.

        Raises:
            ObservationError: (or another ValueError) the observation does not suit this robot; the client is
                sent the text.
        """
        ...


class FakeBank:
    """A bank without a model: the action tells which robot, image, state and prompt it was computed from.

    Row h, column d is `d + 100 * h + image mean + state sum + prompt length`.

    Args:
        action_dims: robot name -> D.
        horizon: H.
        latency_s: how long an inference takes.
        state_dim: width of every robot's state.
    """

    def __init__(
        self, action_dims: Mapping[str, int], horizon: int = 4, latency_s: float | int = 0, state_dim: int = 8
    ) -> None:
        self.action_dims = dict(action_dims)
        self.horizon = horizon
        self.latency_s = latency_s
        self.state_dim = state_dim
        self.failure: Exception | None = None
        self.busy = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.calls = 0

    def robots(self) -> dict[str, dict[str, Any]]:
        """One card per robot, with a required `primary` and an optional `wrist` camera."""
        cameras = {"primary": {"required": True}, "wrist": {"required": False}}
        shared = {"horizon": self.horizon, "state_dim": self.state_dim, "cameras": cameras}
        return {name: {"action_dim": dim, **shared} for name, dim in self.action_dims.items()}

    def act(self, robot: str, observation: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
        """See `expected`; waits for `gate`, raises `failure` if set, refuses the prompt "impossible"."""
        self.busy.set()
        self.threads.add(threading.get_ident())
        self.calls += 1
        try:
            time.sleep(self.latency_s)
            self.gate.wait(60)
            if self.failure is not None:
                raise self.failure
            if observation["prompt"] == "impossible":
                raise ObservationError("this fake cannot do the impossible")
            return self.expected(robot, observation), {"model_ms": 1000.0 * self.latency_s}
        finally:
            self.busy.clear()

    def expected(self, robot: str, observation: dict[str, Any]) -> np.ndarray:
        """The actions [H, D] that `act` gives."""
        trace = float(np.mean(observation["images"]["primary"])) + len(observation["prompt"])
        trace += float(np.sum(observation.get("state", 0.0)))
        columns = np.arange(self.action_dims[robot], dtype=np.float32)
        return columns + 100 * np.arange(self.horizon, dtype=np.float32)[:, None] + np.float32(trace)
