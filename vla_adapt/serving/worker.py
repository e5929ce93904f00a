"""The one thread in which inference runs, so that the event loop always answers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future]


class InferenceThread:
    """Runs callables one after the other, in order of arrival.

    A daemon thread: an inference that never ends cannot keep the process alive after shutdown.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vla-adapt-inference", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs not yet begun."""
        return self._jobs.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are still being taken."""
        return self._thread.is_alive()

    async def run(self, job: Callable[[], Any]) -> Any:
        """The result of `job()`; its exception is raised here."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()
        self._jobs.put((job, loop, future))
        return await future

    def stop(self) -> None:
        """Ends the thread after the job it is at; does not wait for it."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, loop, future = entry
            if future.cancelled():
                continue
            try:
                result, error = job(), None
            except (
                BaseException
            ) as raised:  # whatever a policy raises belongs to its request, not to this thread
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has ended meanwhile; nobody waits
                return


def _settle(future: asyncio.Future, result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.set_exception(RuntimeError(f"inference stopped by {type(error).__name__}"))
