from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from vla_adapt.serving.client import (
    Client,
    RobotConnectionError,
    RobotServerError,
    RobotTimeoutError,
    robot_address,
)
from vla_adapt.serving.protocol import pack
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.server import ServerThread

ACTIONS = np.ones((4, 7), np.float32)


@contextlib.contextmanager
def _foreign_server(converse: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A websocket server whose behavior the test decides; yields its address."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(Exception):
            converse(connection)

    with serve_websocket(handle, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        running.shutdown()
        thread.join(5)


@pytest.mark.parametrize(
    ("url", "robot", "address"),
    [
        ("http://127.0.0.1:8000", "ur5e", "ws://127.0.0.1:8000/robots/ur5e"),
        ("http://127.0.0.1:8000/", None, "ws://127.0.0.1:8000/"),
        ("ws://host:1", "ur5e", "ws://host:1/robots/ur5e"),
        ("https://host/fleet", "ur5e", "wss://host/fleet/robots/ur5e"),
        ("127.0.0.1:8000", "ur5e", "ws://127.0.0.1:8000/robots/ur5e"),
        ("ws://host:1/robots/ur5e", None, "ws://host:1/robots/ur5e"),
        ("ws://host:1", "../x", "ws://host:1/robots/..%2Fx"),
    ],
)
def test_addresses(url: str, robot: str | None, address: str) -> None:
    assert robot_address(url, robot) == address


@pytest.mark.parametrize("url", ["ftp://host", "http://", "", "file:///x"])
def test_bad_addresses_are_named(url: str) -> None:
    with pytest.raises(ValueError, match="wanted something like http://127"):
        Client(url)


@pytest.mark.parametrize("robot", ["franka_panda", "bimanual_panda"])
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_actions_are_those_of_the_bank(
    server: ServerThread, bank: FakeBank, observation: dict[str, Any], robot: str, scheme: str
) -> None:
    with Client(server.url.replace("http", scheme), robot=robot) as client:
        assert client.metadata["robot"] == robot
        assert client.metadata["action_dim"] == bank.action_dims[robot]
        actions = client.act(observation)
        np.testing.assert_allclose(actions, bank.expected(robot, observation), rtol=1e-6)
        assert actions.dtype == np.float32
        actions[0, 0] = 1  # robots edit their chunk
        assert {"infer_ms", "queue_ms", "model_ms"} <= client.timing.keys()
        client.act(observation)
        assert client.timing["prev_total_ms"] > 0


def test_an_error_leaves_the_client_usable(server: ServerThread, observation: dict[str, Any]) -> None:
    with Client(server.url, robot="franka_panda") as client:
        for change, code in (({"state": [1.0]}, "bad_state"), ({"prompt": "impossible"}, "bad_observation")):
            with pytest.raises(RobotServerError) as caught:
                client.act({**observation, **change})
            assert caught.value.code == code
            assert client.act(observation).shape == (4, 7)


@pytest.mark.parametrize(
    "robot", ["ur5", "__base__", "../x", "a/b", "..", "%2e%2e", "franka_panda\n", "x" * 300]
)
def test_unknown_robots_are_refused_by_name(server: ServerThread, robot: str) -> None:
    with pytest.raises(RobotServerError, match="this server has: bimanual_panda, franka_panda") as caught:
        Client(server.url, robot=robot)
    assert caught.value.code == "unknown_robot"


def test_what_cannot_be_sent_is_refused_before_sending(
    server: ServerThread, observation: dict[str, Any]
) -> None:
    with Client(server.url, robot="franka_panda") as client:
        with pytest.raises(ValueError, match="cannot be sent"):
            client.act({**observation, "state": np.array([object()])})
        with pytest.raises(RobotServerError, match="send JPEG") as caught:
            client.act({**observation, "images": {"primary": np.zeros((1000, 1000, 3), np.uint8)}})
        assert caught.value.code == "too_large"
        assert client.act(observation).shape == (4, 7)


def test_close_code_1009_is_too_large(server: ServerThread, observation: dict[str, Any]) -> None:
    with Client(server.url, robot="franka_panda") as client:
        client.metadata.pop("max_message_bytes")
        with pytest.raises(RobotServerError) as caught:
            client.act({**observation, "images": {"primary": np.zeros((1000, 1000, 3), np.uint8)}})
        assert caught.value.code == "too_large"
        assert client.act(observation).shape == (4, 7)


def test_nobody_there() -> None:
    with pytest.raises(RobotConnectionError, match="is the server running") as caught:
        Client("http://127.0.0.1:1", robot="ur5e", timeout_s=2)
    assert caught.value.code == "connection_lost"
    assert isinstance(caught.value, RobotServerError)


def test_one_reconnect_after_a_dropped_connection() -> None:
    requests: list[int] = []

    def converse(connection: ServerConnection) -> None:
        connection.send(pack({"connections": 1 + len(requests)}))
        for message in connection:
            requests.append(message[-1])
            if requests == [1, 2]:
                return  # drops the connection in the middle of the second request
            connection.send(pack({"actions": ACTIONS * message[-1]}))

    with _foreign_server(converse) as url, Client(url) as client:
        for number in (1, 2, 3):
            assert client.act({"number": number})[0, 0] == number
        assert client.metadata == {"connections": 3}
    assert requests == [1, 2, 2, 3]


def test_two_drops_in_a_row_are_an_error() -> None:
    connections: list[int] = []

    def converse(connection: ServerConnection) -> None:
        connections.append(1)
        connection.send(pack({}))
        connection.recv()

    with _foreign_server(converse) as url, Client(url) as client:
        with pytest.raises(RobotConnectionError, match="closed the connection twice"):
            client.act({})
        assert len(connections) == 2


def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    too_late = threading.Event()

    def converse(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for message in connection:
            if message[-1] == 1:
                too_late.wait(60)
            connection.send(pack({"actions": np.full((1, 1), message[-1], np.float32)}))

    with _foreign_server(converse) as url, Client(url) as client:
        client.timeout_s = 0.2
        with pytest.raises(RobotTimeoutError, match=r"within 0.2 s") as caught:
            client.act({"request": 1})
        assert caught.value.code == "timeout"
        too_late.set()
        client.timeout_s = 60
        assert client.act({"request": 2}) == 2


def test_a_server_that_stops_reading_is_a_timeout() -> None:
    """More than the sockets' buffers hold: without a limit a robot would wait as long as the server lives."""
    over = threading.Event()

    def converse(connection: ServerConnection) -> None:
        connection.send(pack({}))
        with connection.protocol_mutex:  # nothing is read while this is held
            over.wait(60)

    with _foreign_server(converse) as url, Client(url) as client:
        client.timeout_s = 0.2
        try:
            with pytest.raises(
                RobotTimeoutError, match=r"took nothing for 0.2 s while \d{8} bytes were sent"
            ):
                client.act({"images": {"primary": np.zeros((2400, 3200, 3), np.uint8)}})
        finally:
            over.set()


@pytest.mark.parametrize(
    "error", [RobotServerError("bad_state", "no"), RobotConnectionError("gone"), RobotTimeoutError("late")]
)
def test_errors_cross_processes(error: RobotServerError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.code, again.message) == (
        f"{error.code}: {error.message}",
        error.code,
        error.message,
    )


@pytest.mark.parametrize(
    ("reply", "code", "text"),
    [
        (b"\xc1", "bad_reply", "unreadable"),
        (pack([1]), "bad_reply", "sent a list"),
        (pack({"action": 1}), "bad_reply", r"no 'actions' array \[H, D\]; got keys \['action'\]"),
        (pack({"actions": ACTIONS[0]}), "bad_reply", "no 'actions' array"),
        ("Traceback\nKeyError: 'x'", "server_error", "KeyError: 'x'"),
    ],
)
def test_strange_replies_are_typed_errors(reply: bytes | str, code: str, text: str) -> None:
    def converse(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for _ in connection:
            connection.send(reply)

    with _foreign_server(converse) as url, Client(url) as client:
        with pytest.raises(RobotServerError, match=text) as caught:
            client.act({})
        assert caught.value.code == code


def test_a_silent_or_strange_greeting() -> None:
    with _foreign_server(lambda connection: connection.recv()) as url, pytest.raises(RobotTimeoutError):
        Client(url, timeout_s=0.2)
    with (
        _foreign_server(lambda connection: connection.send("boom")) as url,
        pytest.raises(RobotServerError, match="boom"),
    ):
        Client(url)


def test_token(observation: dict[str, Any]) -> None:
    with ServerThread(FakeBank({"ur5e": 6}), token="s3") as server:
        for token in (None, "wrong"):
            with pytest.raises(RobotServerError, match="Authorization: Api-Key") as caught:
                Client(server.url, token=token)
            assert caught.value.code == "unauthorized"
        with Client(server.url, token="s3") as client:
            assert client.act(observation).shape == (4, 6)


def test_close_and_act_again(server: ServerThread, observation: dict[str, Any]) -> None:
    client = Client(server.url, robot="franka_panda")
    client.close()
    assert client.act(observation).shape == (4, 7)
    client.close()
    client.close()


def test_the_robots_computer_needs_numpy_msgpack_and_websockets_only() -> None:
    script = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"numpy", "msgpack", "websockets", "vla_adapt"} and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"the light client imports {name}", name=name)
sys.meta_path.insert(0, Watch())
import vla_adapt.serving.client, vla_adapt.serving.protocol
for name in ("torch", "transformers", "pydantic", "yaml", "starlette", "simplejpeg", "jaxtyping"):
    assert name not in sys.modules, name
ours = sorted(name for name in sys.modules if name.startswith("vla_adapt."))
assert ours == ["vla_adapt.serving", "vla_adapt.serving.client", "vla_adapt.serving.protocol"], ours
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
