"""Forks the processes of launches from one that has imported everything: a launch costs no import.

Not a test: `conftest.py` starts it and speaks with it in lines of JSON. A rank is a real process with the
environment that `torchrun` would give it; killing it is a real `kill -9`. Answers when all ranks have ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from vla_adapt.recipe import Recipe
from vla_adapt.training import pulse
from vla_adapt.training.loop import train


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def be_rank(order: dict[str, Any], rank: int, port: int) -> None:
    """Train as one rank; the exit status says how it ended."""
    output = os.open(f"{order['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as finetune.py does
    world = str(order["world"])
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    os.environ.update(order.get("environment", {}))
    for name, value in order.get("pulse", {}).items():
        setattr(pulse, name, value)
    if order.get("before"):  # "file.py:function": changes this process first
        file, function = order["before"].rsplit(":", 1)
        sys.path.insert(0, str(Path(file).parent))
        getattr(importlib.import_module(Path(file).stem), function)(rank)
    code = 1
    try:
        train(Recipe.model_validate(order["recipe"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(order: dict[str, Any]) -> list[int]:
    """Run one launch; returns the ranks' exit statuses, negative for a signal."""
    port = free_port()
    ranks = list(range(order["world"]))
    children = []
    for rank in ranks:
        child = os.fork()
        if child == 0:
            be_rank(order, rank, port)
        children.append(child)
    if "signal_at" in order:
        wait_until(order["signal_at"], order.get("wait_for"), children)
        for rank in order["victims"]:
            os.kill(children[rank], order.get("signal", signal.SIGKILL))
    statuses: dict[int, int] = {}
    until = time.monotonic() + order.get("limit_s", 120)
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
        left = {child for child in children if child not in statuses}
        frozen = order.get("signal") == signal.SIGSTOP and left == {
            children[rank] for rank in order["victims"]
        }
        if frozen or time.monotonic() > until:
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [statuses[child] for child in children]


def wait_until(delay_s: float, name: str | None, children: list[int]) -> None:
    """`delay_s` after the file `name` (or at once) appears, or until a child has ended."""
    while name is not None and not Path(name).exists():
        if any(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return
        time.sleep(0.002)
    time.sleep(delay_s)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
