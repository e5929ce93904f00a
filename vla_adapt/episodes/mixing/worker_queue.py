"""How a loader's processes talk: queues whose `put` writes to the pipe itself.

`multiprocessing.Queue` hands what is put to a thread. Waking it, in a process that decodes or trains, takes
longer than the writing does.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import select
from multiprocessing.context import ForkContext
from multiprocessing.reduction import ForkingPickler
from typing import Any


class PipeQueue:
    """What `DataLoader` asks of a queue with one reader. `put` waits while the pipe is full.

    A worker whose trainer is gone ends at its next `put`, quietly.
    """

    def __init__(self, context: ForkContext):
        self._reader, self._writer = context.Pipe(duplex=False)
        self._writing = context.Lock()
        self._made_in, self._has_put = os.getpid(), False

    def put(self, obj: Any) -> None:
        in_worker = os.getpid() != self._made_in
        if in_worker and not self._has_put:
            self._reader.close()  # or the worker itself would keep the pipe from breaking
            self._has_put = True
        data = ForkingPickler.dumps(obj)
        try:
            with self._writing:
                self._writer.send_bytes(data)
        except BrokenPipeError:
            if in_worker:
                raise SystemExit(1) from None
            raise

    def get(self, block: bool = True, timeout: int | float | None = None) -> Any:
        """Raises queue.Empty as `multiprocessing.Queue` does; `timeout` in s."""
        ready = select.poll()  # the connection's own poll() makes a selector each time
        ready.register(self._reader, select.POLLIN)
        if not ready.poll(0 if not block else None if timeout is None else 1000 * timeout):
            raise queue.Empty
        return pickle.loads(self._reader.recv_bytes())

    def close(self) -> None:
        """Close both ends in this process."""
        self._reader.close()
        self._writer.close()

    def cancel_join_thread(self) -> None:
        """There is no thread."""

    join_thread = cancel_join_thread


class PipeContext(ForkContext):
    """Forks as the default does; its queues are `PipeQueue`s."""

    def Queue(self, maxsize: int = 0) -> Any:  # type: ignore[override]
        assert not maxsize, "a PipeQueue has no size of its own"
        return PipeQueue(self)


def forks() -> bool:
    """Whether processes are forked when nobody says how to start them."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork"
