"""Queues without threads: nothing is lost, nobody waits for a process that is gone."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.worker_queue import PipeContext, PipeQueue, forks
from vla_adapt.episodes.windows import Window

LARGE = 300_000  # more than a pipe holds


@pytest.fixture
def mixture(written: Path) -> Mixture:
    return Mixture([(open_dataset(written), 1.0)], 3, horizon=4)


def test_what_is_put_is_got_from_two_processes() -> None:
    context = PipeContext()
    pipe: PipeQueue = context.Queue()
    running = [context.Process(target=put_some, args=(pipe, number)) for number in range(2)]
    for process in running:
        process.start()
    got = [pipe.get(timeout=20) for _ in range(40)]
    for process in running:
        process.join()
    for number in range(2):
        assert [count for owner, count, _ in got if owner == number] == list(range(20))
    assert {len(data) for *_, data in got} == {10, LARGE}


def put_some(pipe: PipeQueue, number: int) -> None:
    for count in range(20):
        pipe.put((number, count, bytes(LARGE if count % 3 == 0 else 10)))


def test_an_empty_queue() -> None:
    pipe: PipeQueue = PipeContext().Queue()
    for options in ({"block": False}, {"timeout": 0.01}):
        with pytest.raises(queue.Empty):
            pipe.get(**options)  # type: ignore[arg-type]
    pipe.put(5)
    assert pipe.get(block=False) == 5


def test_a_worker_ends_when_nobody_reads() -> None:
    context = PipeContext()
    pipe: PipeQueue = context.Queue()
    process = context.Process(target=put_some, args=(pipe, 0))
    process.start()
    assert pipe.get(timeout=20)[1] == 0
    pipe.close()
    process.join(20)
    assert process.exitcode == 1, "quietly: SystemExit, no signal"


def test_loaders_use_it_where_processes_are_forked(mixture: Mixture) -> None:
    assert forks() == (sys.platform == "linux" and sys.version_info < (3, 14))
    if forks():
        loaders = [make_loader(mixture, 4, num_workers=1, pin_memory=pin) for pin in (False, True)]
        contexts = [loader.multiprocessing_context for loader in loaders]
        assert [isinstance(context, PipeContext) for context in contexts] == [True, False]


def test_an_error_in_a_worker_reaches_the_trainer(mixture: Mixture) -> None:
    def fails(windows: list[Window]) -> object:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        next(iter(make_loader(mixture, 4, num_workers=1, collate=fails)))  # type: ignore[arg-type]


def test_a_killed_worker_is_told(mixture: Mixture) -> None:
    before = set(multiprocessing.active_children())
    loader = iter(make_loader(mixture, 4, num_workers=1, collate=large))
    next(loader)
    (worker,) = [process.pid for process in multiprocessing.active_children() if process not in before]
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(itertools.islice(loader, 20))


def large(windows: list[Window]) -> np.ndarray:
    return np.zeros(LARGE, object)


PROGRAM = """
import sys
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
import multiprocessing, time
mixture = Mixture([(open_dataset(sys.argv[1]), 1.0)], 3, horizon=4)
loader = iter(make_loader(mixture, 4, num_workers=2, collate=lambda windows: [bytes(300_000)]))
next(loader)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_trainer(written: Path) -> None:
    """They wait in a full pipe by then."""
    command = [sys.executable, "-c", PROGRAM, str(written)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(1)
        trainer.kill()
        said = trainer.communicate()[1]
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))
    assert "Traceback" not in said


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
