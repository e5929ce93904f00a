"""Start a command once per rank of a run on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence


def outputs_of_ranks(
    command: Sequence[str], processes: int, environment: Mapping[str, str] | None = None
) -> list[str]:
    """What each rank printed; a single process gets no rank.

    Raises:
        RuntimeError: one of them failed; with what it said.
    """
    shared = {**os.environ, **(environment or {})}
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    ranks = []
    for rank in map(str, range(processes)):
        own = {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        pipe = subprocess.PIPE
        ranks.append(subprocess.Popen(command, env=shared | own, stdout=pipe, stderr=pipe, text=True))
    ended = [(*rank.communicate(), rank.returncode) for rank in ranks]
    if any(code for _, _, code in ended):
        raise RuntimeError("\n".join(said for _, said, code in ended if code))
    return [printed for printed, _, _ in ended]


def _free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])
