from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vla_adapt.serving.client import Client
from vla_adapt.serving.protocol import pack
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.routes import MAX_UPLOADS
from vla_adapt.serving.server import ServerThread


def _send_and_wait(socket: ClientConnection, size: int) -> None:
    """Sends a frame; whichever notices the refusal first, sending or waiting, raises."""
    socket.recv()
    socket.send(b"x" * size)
    socket.recv(timeout=60)


@pytest.mark.parametrize("size", [2**20 + 1, 2 * 2**20, 5 * 2**20, 12 * 2**20])
def test_oversize_frames_close_with_1009_and_never_with_a_reset(server: ServerThread, size: int) -> None:
    address = server.url.replace("http", "ws") + "/robots/franka_panda"
    with connect(address, compression=None, proxy=None) as socket, pytest.raises(ConnectionClosed) as caught:
        _send_and_wait(socket, size)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009
    assert f"frame with {size} bytes exceeds limit of {2**20} bytes" in caught.value.rcvd.reason


def test_invalid_text_closes_with_1007(server: ServerThread) -> None:
    with connect(server.url.replace("http", "ws") + "/robots/franka_panda", proxy=None) as socket:
        socket.recv()
        socket.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=60)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1007


@pytest.mark.parametrize("waiting", [False, True], ids=["arriving", "waiting to be taken"])
def test_messages_of_all_connections_are_bounded_together(observation: dict[str, Any], waiting: bool) -> None:
    """Those that hold most are refused, others served; what waits behind an earlier message counts, too."""
    size = 2**20
    frame = b"\x82\xff" + size.to_bytes(8, "big") + bytes(4 + size)  # one binary frame, masked with zeros
    bank = FakeBank({"ur5e": 6})
    with ServerThread(bank, max_message_bytes=size) as server, ExitStack() as stack:
        address = server.url.replace("http", "ws")
        sockets = [
            stack.enter_context(connect(address, compression=None, proxy=None))
            for _ in range(MAX_UPLOADS + 2)
        ]
        if waiting:
            bank.gate.clear()
            for socket in sockets:
                socket.send(pack(observation))
            _wait(lambda: server.service.metrics.in_flight == len(sockets))
        for socket in sockets:
            socket.socket.sendall(frame if waiting else frame[:-1])

        _wait(lambda: sum(socket.close_code == 1013 for socket in sockets) >= 2)
        bank.gate.set()
        with Client(server.url) as client:
            assert client.act(observation).shape == (4, 6)
        others = [socket for socket in sockets if socket.close_code is None]
        assert len(others) >= MAX_UPLOADS - 2
        for socket in others:
            if not waiting:
                socket.socket.sendall(frame[-1:])
            # The greeting, an answer to what was asked first, and what is wrong with the large one.
            assert "bad_message" in str([socket.recv(timeout=60) for _ in range(3 if waiting else 2)][-1])


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)
