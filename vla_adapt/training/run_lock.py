"""One run per folder: a second process that would train into it is refused while the first one lives."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vla_adapt.training.ranks import Ranks

FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def run_lock(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Inside, `folder` exists and is this run's; collective, the main process holds the lock.

    A killed process lets go of it, also while its loader processes still live. Some remote file systems have
    no locks; there it is not checked.

    Raises:
        ValueError: another run is at work there, or the folder cannot be written to.
    """
    with ExitStack() as stack:
        ranks.on_main(lambda: stack.enter_context(_locked(folder)))
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / FILE).open("a+")
    except OSError as error:
        raise ValueError(f"cannot write to the output folder {folder}: {error.strerror}") from error
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                stream.seek(0)
                raise ValueError(
                    f"{folder} is being trained into by {stream.read().strip() or 'another process'}; end "
                    "that run, or choose another output folder"
                ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
