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
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


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

    @property
    def who(self) -> str:
        return f"(process {self.pid} on {self.host}, at {self.at})"


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
        self._heard = 0.0  # when the store last answered
        self._lock, self._stop = threading.Lock(), threading.Event()
        # Two threads: a store that is frozen blocks whoever asks it, in spite of its timeout.
        self._speaker = threading.Thread(target=self._speak, name="pulse", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="pulse-watch", daemon=True)

    def __enter__(self) -> Pulse:
        if self._ranks.world > 1:
            self._store = self._store or _connect()
            self._beat()
            self._ranks.wait()  # the store blocks on a key that nobody has set
            self._look()
            self._speaker.start()
            self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._speaker.is_alive():
            return
        lost = self.explain(error) if isinstance(error, RuntimeError) else None
        self._mine.done = kind is None or isinstance(error, Stopped)
        self._mine.words = "" if self._mine.done or lost is not None else str(error) or type(error).__name__
        self._stop.set()
        self._speaker.join(timeout=STORE_S)
        if lost is not None:
            raise lost from error

    def note(self, at: str) -> None:
        """Say where this process is, for the others' messages."""
        self._mine.at = at

    def explain(self, error: RuntimeError) -> RankLost | None:
        """Which other process is the cause of a failure here; None when none is."""
        until = time.monotonic() + EXPLAIN_S
        while not (fates := self.fates()) and time.monotonic() < until:
            time.sleep(0.1)
        if fates:
            self._hear_once(until)  # last words may still be on the way
            return self._lost(self.fates() or fates)
        if "timed out" not in str(error).lower():
            return None
        at = ", ".join(f"rank {rank} at {record.at}" for rank, (record, _) in sorted(self._seen.items()))
        return RankLost(
            f"a process kept the others waiting for too long: {at}; {self._where()}", self._ranks.is_main
        )

    def _hear_once(self, until: float) -> None:
        """Wait for all that was said before now, or until then."""
        asked = time.monotonic()
        while self._heard < asked + BEAT_S / 2 and time.monotonic() < until:
            time.sleep(0.05)

    def fates(self) -> dict[int, str]:
        """What is wrong with which other processes, as far as is known."""
        with self._lock:
            seen, heard = dict(self._seen), self._heard
        fates = {
            rank: _fate(record, heard - when, self._mine.host)
            for rank, (record, when) in seen.items()
            if rank != self._ranks.rank
        }
        fates = {rank: f"rank {rank} {fate}" for rank, fate in fates.items() if fate}
        silent_s = time.monotonic() - heard
        if not fates and silent_s > SILENT_S:
            holder = "the launcher" if os.environ.get(_AGENT_STORE) == "True" else f"rank 0 {seen[0][0].who}"
            fates[0] = (
                f"{holder} holds the processes' store, which has given no sign of life for {silent_s:.0f} s"
            )
        return fates

    def _lost(self, fates: dict[int, str]) -> RankLost:
        speaker = min(set(range(self._ranks.world)) - fates.keys())
        said = "; ".join(fates[rank] for rank in sorted(fates))
        return RankLost(f"{said}; {self._where()}", speaker == self._ranks.rank)

    def _speak(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(RuntimeError):  # the store is gone with its process: the records tell which
                self._beat()
                self._look()
        with suppress(RuntimeError):
            self._beat()

    def _watch(self) -> None:
        since: float | None = None
        while not self._stop.wait(BEAT_S):
            fates = self.fates()
            since = (since or time.monotonic()) if fates else None
            if since is not None and time.monotonic() - since > GRACE_S:
                self._end(self._lost(fates))

    def _beat(self) -> None:
        assert self._store is not None
        self._mine.beat += 1
        self._store.set(_key(self._ranks.rank), json.dumps(asdict(self._mine)))

    def _look(self) -> None:
        assert self._store is not None
        texts = self._store.multi_get([_key(rank) for rank in range(self._ranks.world)])
        now = time.monotonic()
        with self._lock:
            self._heard = now
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
    if record.words:
        return f"{record.who} ended: {record.words}"
    if record.host == host and not _lives(record):
        return f"{record.who} died"
    if silent_s > SILENT_S:
        return f"{record.who} has given no sign of life for {silent_s:.0f} s"
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
