"""A policy server of our own beside us, for as long as something is driven through it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def local_server(base: Path, bundles: Path, ready_file: Path, patience_s: float = 120) -> Iterator[str]:
    """A running `vla-adapt serve` of one thread; yields its URL and ends it in any case.

    Args:
        base: checkpoint folder.
        bundles: folder of bundles.
        ready_file: where the server writes its URL.

    Raises:
        ValueError: it ended, or did not come up in time.
    """
    ready_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "vla_adapt.cli",
        "serve",
        "--base",
        str(base),
        "--adapters",
        str(bundles),
    ]
    command += ["--port", "0", "--threads", "1", "--ready-file", str(ready_file)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + patience_s
        while not ready_file.is_file():
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(
                    f"the server of {bundles} did not come up (exit status {process.poll()}); see above, or "
                    f"try it alone: {' '.join(command[1:])}"
                )
            time.sleep(0.2)
        yield ready_file.read_text().strip()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ready_file.unlink(missing_ok=True)
