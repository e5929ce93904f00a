"""One request, from bytes to actions: admission, decoding, inference, timing, counting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vla_adapt.serving.access import find_robot
from vla_adapt.serving.counters import ServerMetrics
from vla_adapt.serving.observation import parse_observation
from vla_adapt.serving.protocol import MAX_MESSAGE_BYTES, ObservationError, WireError, one_line
from vla_adapt.serving.resident import Bank
from vla_adapt.serving.worker import InferenceThread

logger = logging.getLogger("vla_adapt.serving")


class PolicyService:
    """Answers requests of all robots from one bank.

    Decoding (JPEG, msgpack, JSON) runs in a small thread pool, inference in one thread, so neither blocks the
    event loop nor each other.

    Args:
        bank: the resident policies.
        token: secret that requests must carry; None for no check.
        max_message_bytes: larger messages are refused.
        max_waiting: requests admitted at a time; more are refused as `overloaded`.
    """

    def __init__(
        self,
        bank: Bank,
        token: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_waiting: int = 32,
    ) -> None:
        self.bank = bank
        self.token = token
        self.max_message_bytes = max_message_bytes
        self.max_waiting = max_waiting
        self.metrics = ServerMetrics()
        self.draining = False
        self._inference = InferenceThread()
        self._decoding = ThreadPoolExecutor(2, thread_name_prefix="vla-adapt-decode")

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return not self.draining and self._inference.is_alive

    def greeting(self, robot: str) -> dict[str, Any]:
        """What a robot is told when it connects: its card and the server's limits."""
        card = self.bank.robots()[robot]
        return {**card, "robot": robot, "max_message_bytes": self.max_message_bytes}

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds a place from receipt until the reply is sent; shutdown waits for these.

        Raises:
            WireError: `draining` or `overloaded`.
        """
        if self.draining:
            raise WireError("draining", "the server is shutting down; reconnect in a moment")
        if self.metrics.in_flight >= self.max_waiting:
            raise WireError("overloaded", f"{self.max_waiting} requests are waiting already; try again later")
        self.metrics.in_flight += 1
        try:
            yield
        finally:
            self.metrics.in_flight -= 1

    async def answer(self, read: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
        """The reply `{"actions": float32 [H, D], "server_timing": {...}}` to one request.

        Args:
            read: decodes the request, in another thread: (robot name, message).

        Raises:
            WireError: what the client did wrong, or `internal` with an id that is in the server's log.
        """
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        try:
            robot, observation = await loop.run_in_executor(self._decoding, self._understand, read, seen)
            reply = await self._infer(robot, observation)
        except WireError as error:
            self.metrics.count("".join(seen), error.code)
            raise
        except Exception as error:
            incident = secrets.token_hex(4)
            logger.error("request for robot %r failed, error id %s", seen, incident, exc_info=error)
            self.metrics.count("".join(seen), "internal")
            message = f"the server failed on this request; its log has the details under error id {incident}"
            raise WireError("internal", message) from None
        self.metrics.count(robot, "ok")
        return reply

    async def drain(self, timeout_s: float | int, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Takes nothing new and waits for what is under way; False when `timeout_s` was not enough."""
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while self.metrics.in_flight and time.monotonic() < deadline and not hurry():
            await asyncio.sleep(0.01)
        return not self.metrics.in_flight

    def close(self) -> None:
        """Ends the threads."""
        self._inference.stop()
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _understand(self, read: Callable[[], tuple[Any, Any]], seen: list[str]) -> tuple[str, dict[str, Any]]:
        """Decodes a request; `seen` learns the robot even if its observation is then refused."""
        name, request = read()
        cards = self.bank.robots()
        robot = find_robot(name, cards)
        seen.append(robot)
        return robot, parse_observation(request, cards[robot])

    async def _infer(self, robot: str, observation: dict[str, Any]) -> dict[str, Any]:
        queued = time.perf_counter()
        begun = queued

        def job() -> tuple[np.ndarray, dict[str, float]]:
            nonlocal begun
            begun = time.perf_counter()
            return self.bank.act(robot, observation)

        try:
            actions, timing = await self._inference.run(job)
        except WireError:
            raise
        except ValueError as error:  # house rule: ValueError is the user's mistake, with a text for them
            raise ObservationError(one_line(error)) from error
        seconds = time.perf_counter() - begun
        self.metrics.observe(robot, seconds)
        own = {"infer_ms": 1000 * seconds, "queue_ms": 1000 * (begun - queued)}
        numbers = {str(name): float(value) for name, value in timing.items()}
        return {"actions": _checked_actions(actions), "server_timing": {**numbers, **own}}


def _checked_actions(actions: Any) -> np.ndarray:
    """What leaves for a robot: float32 [H, D], finite. Anything else is the server's own fault."""
    actions = np.ascontiguousarray(actions, dtype=np.float32)
    if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
        raise RuntimeError(
            f"the policy gave actions {list(actions.shape)} that are not finite numbers [H, D]"
        )
    return actions
