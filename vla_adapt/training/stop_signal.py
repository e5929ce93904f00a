"""Pre-emption: SIGTERM and SIGUSR1 ask a run to finish its step, save and end, on all processes the same.

`torchrun` and `accelerate launch` with several processes pass SIGTERM on, then wait for
TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (30 unless set) before they kill; SIGUSR1 kills the launcher itself.
`accelerate launch` with one process passes nothing on and leaves its child alone: see `follow_launcher`.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from datetime import timedelta
from types import FrameType
from typing import Any

from vla_adapt.training.launch_command import launcher_command
from vla_adapt.training.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """A run was asked to end before its last step; it saved first.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int, step: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; {where}")
        self.signal = number


class StopSignal:
    """A context manager: inside, the signals are only noted; `agreed` says whether any process got one."""

    def __init__(self, ranks: Ranks, patience: timedelta) -> None:
        self._ranks, self._patience = ranks, patience
        self._received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._ranks.world > 1 and kind is not None and issubclass(kind, RuntimeError):
            return  # once a process has died its launcher ends the others: they shall say why first
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that any process got by now, the same on all of them, or 0; collective, once a step.

        One process costs nothing, several an all-reduce of eight bytes over gloo.
        """
        return self._ranks.largest(self._received, self._patience)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number


def spare_once(_: int) -> None:
    """For loader processes: a signal sent to the whole job must not take the batches of the last step away.

    The first SIGTERM is passed over, the second ends the process as usual; SIGUSR1 is passed over.
    """
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def follow_launcher() -> None:
    """Get SIGTERM when the launcher that started this process is gone (Linux only), not train on unseen."""
    if not sys.platform.startswith("linux"):
        return
    if launcher_command():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
