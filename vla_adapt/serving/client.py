"""The robot's side: ask a policy server for the next actions, with numpy, msgpack and websockets alone.

    with Client("http://127.0.0.1:8000", robot="ur5e") as client:
        actions = client.act({"images": {"primary": image}, "state": state, "prompt": "lift the cube"})

It speaks openpi's websocket protocol, so it also talks to an openpi server (leave `robot` out).
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
import sys
import threading
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from vla_adapt.serving.protocol import MAX_MESSAGE_BYTES, WireError, pack, parse_error, unpack

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


class RobotServerError(RuntimeError):
    """The server refused or failed.

    Attributes:
        code: the server's reason, e.g. `unknown_robot`, `unauthorized`, `bad_observation`, `too_large`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Made again from what subclasses are made of: errors cross processes (closed loop in workers)."""
        arguments = (self.code, self.message) if type(self) is RobotServerError else (self.message,)
        return type(self), arguments


class RobotConnectionError(RobotServerError):
    """No server there, or the connection dropped twice in a row."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message)


class RobotTimeoutError(RobotServerError):
    """No answer in time. The connection is closed: a late answer must never be taken for the next one's."""

    def __init__(self, message: str) -> None:
        super().__init__("timeout", message)


class Client:
    """A connection of one robot to a policy server. Connects at once; one request at a time (thread-safe).

    Args:
        url: base address, `ws://`, `wss://`, `http://` or `https://`; a bare `host:port` means `ws://`.
        robot: name of the robot on that server; None for a server with a single robot.
        token: secret sent as `Authorization: Api-Key`.
        timeout_s: longest wait for one answer, and for a connection, in seconds.

    Raises:
        RobotServerError: with `.code`, see its subclasses for no connection and time-outs.
        ValueError: the address cannot be read.
    """

    def __init__(
        self, url: str, robot: str | None = None, token: str | None = None, timeout_s: float | int = 30
    ) -> None:
        self.url = robot_address(url, robot)
        self.timeout_s = timeout_s
        self.metadata: dict[str, Any] = {}
        self.timing: dict[str, float] = {}
        self._headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._resources = contextlib.ExitStack()
        with self._lock:
            self._open()

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """The next actions [H, D] in the robot's own units (float32, a fresh writable array).

        Args:
            observation: `{"images": {camera: uint8 [h, w, 3] or JPEG bytes}, "state": [P], "prompt": str}`.

        Raises:
            RobotServerError: the server refused (`.code` says why); the client stays usable.
            ValueError: the observation holds something that cannot be sent.
        """
        message = pack(observation)
        limit = self.metadata.get("max_message_bytes")
        if isinstance(limit, int) and len(message) > limit:
            raise RobotServerError(
                "too_large", f"observation of {len(message)} bytes, the server takes {limit}; send JPEG"
            )
        with self._lock:
            reply = self._exchange(message)
        if isinstance(reply, str):
            raise RobotServerError(*parse_error(reply))
        return self._actions(reply)

    def close(self) -> None:
        """Ends the connection; a later `act` opens a new one."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _exchange(self, message: bytes) -> bytes | str:
        """Sends and waits. A dropped connection is reopened once; asking twice is safe, no state is kept."""
        for attempt in (1, 2):
            try:
                connection = self._connection or self._open()
                _limit_sending(connection.socket, self.timeout_s)
                connection.send(message)
                return connection.recv(timeout=self.timeout_s)
            except ConnectionClosed as error:
                self._drop()
                if isinstance(error.__cause__, BlockingIOError | ssl.SSLWantWriteError):
                    raise RobotTimeoutError(
                        f"{self.url} took nothing for {self.timeout_s:g} s while {len(message)} bytes were "
                        "sent"
                    ) from None
                if error.rcvd is not None and error.rcvd.code == 1009:
                    raise RobotServerError(
                        "too_large", f"the server takes no message of {len(message)} bytes"
                    ) from None
                if attempt == 2:
                    raise RobotConnectionError(f"{self.url} closed the connection twice ({error})") from None
            except TimeoutError:
                self._drop()
                raise RobotTimeoutError(f"no answer from {self.url} within {self.timeout_s:g} s") from None
            except BaseException:  # also Ctrl-C: an answer may still be under way
                self._drop()
                raise
        raise AssertionError("unreachable")

    def _open(self) -> ClientConnection:
        try:
            connection = self._resources.enter_context(
                connect(
                    self.url,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=self.timeout_s,
                    close_timeout=1.0,
                    proxy=None if is_local(self.url) else True,
                )
            )
            self.metadata = self._decode(connection.recv(timeout=self.timeout_s))
        except RobotServerError:
            self._drop()
            raise
        except InvalidStatus as error:
            raise _refusal(error) from None
        except TimeoutError:
            self._drop()
            raise RobotTimeoutError(
                f"{self.url} did not open a connection within {self.timeout_s:g} s"
            ) from None
        except (OSError, EOFError, WebSocketException) as error:
            self._drop()
            raise RobotConnectionError(
                f"cannot connect to {self.url} ({error}); is the server running?"
            ) from None

        self._connection = connection
        return connection

    def _drop(self) -> None:
        resources, self._resources, self._connection = self._resources, contextlib.ExitStack(), None
        with contextlib.suppress(OSError, EOFError, WebSocketException):
            resources.close()

    def _decode(self, reply: bytes | str) -> dict[str, Any]:
        if isinstance(reply, str):
            raise RobotServerError(*parse_error(reply))
        try:
            content = unpack(reply)
        except WireError as error:
            raise RobotServerError(
                "bad_reply", f"{self.url} sent something unreadable: {error.message}"
            ) from None
        if not isinstance(content, dict):
            raise RobotServerError("bad_reply", f"{self.url} sent a {type(content).__name__}, wanted a map")
        return content

    def _actions(self, reply: bytes) -> np.ndarray:
        content = self._decode(reply)
        actions = content.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2:
            raise RobotServerError(
                "bad_reply", f"{self.url} sent no 'actions' array [H, D]; got keys {sorted(content)}"
            )
        timing = content.get("server_timing")
        self.timing = timing if isinstance(timing, dict) else {}
        return np.array(actions, dtype=np.float32)


def robot_address(url: str, robot: str | None) -> str:
    """The websocket address of `robot` on the server at `url`.

    Raises:
        ValueError: `url` has another scheme or no host.
    """
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(
            f"server address {url!r}: wanted something like http://127.0.0.1:8000 or ws://host:port"
        )
    path = parts.path.rstrip("/") + (f"/robots/{quote(robot, safe='')}" if robot else "")
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path or "/", "", ""))


def _limit_sending(connection: socket.socket, seconds: float | int) -> None:
    """Let `sendall` fail when the other side takes nothing for so long; the library itself waits for ever."""
    whole_ms = max(1, round(1000 * seconds))
    windows = sys.platform == "win32"
    value = whole_ms if windows else struct.pack("ll", whole_ms // 1000, whole_ms % 1000 * 1000)
    with contextlib.suppress(OSError):  # closed meanwhile: the next send tells, in its own words
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def is_local(url: str) -> bool:
    """Whether `url` is on this machine; then a proxy from the environment must not be asked."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _refusal(error: InvalidStatus) -> RobotServerError:
    """The server's reason for refusing the handshake, from the JSON body it sent along."""
    response = error.response
    body = (response.body or b"").decode("utf-8", "replace")
    code, message = parse_error(body)
    if code == "server_error":
        code, message = f"http_{response.status_code}", f"the server refused with HTTP {response.status_code}"
    return RobotServerError(code, message)
