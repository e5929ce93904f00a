"""A sign of life from every process to all others: who died, hangs or failed is named, nobody waits hours.

Each process writes a record into the launch's key-value store once a second and reads those of the others, in
a thread. A collective that fails because of a dead process is so explained; one that hangs, as NCCL's do then
and all do when a process is frozen, is ended. Cost: one small write and one read a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

import psutil
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from vla_adapt.training.ranks import Ranks
from vla_adapt.training.stop_signal import Stopped

BEAT_S = 1.0
SILENT_S = 45.0  # without a sign of life a process is lost
GRACE_S = 10.0  # for the training thread to notice by itself
STORE_S = 10.0  # for an answer of the store
EXPLAIN_S = 5.0  # for the cause of a failed collective to show
EXIT_LOST = 3


class RankLost(ValueError):
    """Another process died, hangs or failed.

    Attributes:
        speaks: whether this is the process, of those left, that tells the user.
    """

    def __init__(self, message: str, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks


@dataclass
class Record:
    """What a process says of itself; `words` are its last ones, when it fails by itself."""

    host: str
    pid: int
    born: float
    beat: int = 0
    at: str = "start"
    words: str = ""
    done: bool = False


class Pulse:
    """A context manager around a run; a single process has no pulse.

    Args:
        ranks: of the run.
        where: says where the run would go on, for the message.
        store: key-value store of the launch; made from MASTER_ADDR and MASTER_PORT when None.
    """

    def __init__(self, ranks: Ranks, where: Callable[[], str], store: Store | None = None) -> None:
        self._ranks, self._where = ranks, where
        self._store = store
        self._mine = Record(socket.gethostname(), os.getpid(), psutil.Process().create_time())
        self._seen: dict[int, tuple[Record, float]] = {}  # rank -> newest record and when it came
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        if self._ranks.world > 1:
            self._store = self._store or _connect()
            self._beat()
            self._ranks.wait()  # the store blocks on a key that nobody has set
            self._look()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._thread.is_alive():
            return
        lost = self.explain(error) if isinstance(error, RuntimeError) else None
        self._mine.done = kind is None or isinstance(error, Stopped)
        self._mine.words = "" if self._mine.done or lost is not None else str(error) or type(error).__name__
        self._stop.set()
        self._thread.join()
        with suppress(RuntimeError):  # whoever holds the store has ended already
            self._beat()
        if lost is not None:
            raise lost from error

    def note(self, at: str) -> None:
        """Say where this process is, for the others' messages."""
        self._mine.at = at

    def explain(self, error: RuntimeError) -> RankLost | None:
        """Which other process is the cause of a failure here; None when none is."""
        until = time.monotonic() + EXPLAIN_S
        while True:
            self._exchange()
            fates = self.fates()
            if fates:
                return self._lost(fates)
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        if "timed out" not in str(error).lower():
            return None
        at = ", ".join(f"rank {rank} at {record.at}" for rank, (record, _) in sorted(self._seen.items()))
        return RankLost(
            f"a process kept the others waiting for too long: {at}; {self._where()}", self._ranks.is_main
        )

    def fates(self) -> dict[int, str]:
        """What is wrong with which other processes, as far as is known."""
        now = time.monotonic()
        with self._lock:
            seen = dict(self._seen)
        fates = {
            rank: _fate(record, now - when, self._mine.host)
            for rank, (record, when) in seen.items()
            if rank != self._ranks.rank
        }
        return {rank: f"rank {rank} {fate}" for rank, fate in fates.items() if fate}

    def _lost(self, fates: dict[int, str]) -> RankLost:
        speaker = min(set(range(self._ranks.world)) - fates.keys())
        said = "; ".join(fates[rank] for rank in sorted(fates))
        return RankLost(f"{said}; {self._where()}", speaker == self._ranks.rank)

    def _watch(self) -> None:
        since: float | None = None
        while not self._stop.wait(BEAT_S):
            self._exchange()
            fates = self.fates()
            since = (since or time.monotonic()) if fates else None
            if since is not None and time.monotonic() - since > GRACE_S:
                self._end(self._lost(fates))

    def _exchange(self) -> None:
        with suppress(RuntimeError):  # the store is gone, or frozen, with its process: the records tell which
            self._beat()
            self._look()

    def _beat(self) -> None:
        assert self._store is not None
        self._mine.beat += 1
        self._store.set(_key(self._ranks.rank), json.dumps(asdict(self._mine)))

    def _look(self) -> None:
        assert self._store is not None
        texts = self._store.multi_get([_key(rank) for rank in range(self._ranks.world)])
        now = time.monotonic()
        with self._lock:
            for rank, text in enumerate(texts):
                record = Record(**json.loads(text))
                if rank not in self._seen or self._seen[rank][0].beat != record.beat:
                    self._seen[rank] = record, now

    def _end(self, lost: RankLost) -> NoReturn:
        """The training thread waits in a collective that nobody can interrupt: end the process."""
        if lost.speaks:
            print(f"finetune: {lost}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_LOST)


def _fate(record: Record, silent_s: float, host: str) -> str:
    if record.done:
        return ""
    who = f"(process {record.pid} on {record.host}, at {record.at})"
    if record.words:
        return f"{who} ended: {record.words}"
    if record.host == host and not _lives(record):
        return f"{who} died"
    if silent_s > SILENT_S:
        return f"{who} has given no sign of life for {silent_s:.0f} s"
    return ""


def _lives(record: Record) -> bool:
    try:
        process = psutil.Process(record.pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - record.born) < 1.0
    except psutil.NoSuchProcess:
        return False


def _connect() -> TCPStore:
    """A connection of our own: one that is shared is locked while another thread waits on it."""
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
        timeout=timedelta(seconds=STORE_S),
    )  # fmt: skip


def _key(rank: int) -> str:
    return f"vla_adapt/pulse/{rank}"
