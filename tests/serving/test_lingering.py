from __future__ import annotations

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

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
