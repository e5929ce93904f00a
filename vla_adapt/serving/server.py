"""Runs the policy server: one process, one resident bank, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from vla_adapt.serving.access import is_robot_name
from vla_adapt.serving.lingering import LingeringWebSocket
from vla_adapt.serving.protocol import MAX_MESSAGE_BYTES, pack
from vla_adapt.serving.resident import Bank
from vla_adapt.serving.routes import create_app
from vla_adapt.serving.service import PolicyService


def serve(
    bank: Bank,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    ready: Callable[[str], None] | None = None,
    *,
    ready_file: str | Path | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    drain_s: float | int = 20,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what is under way and returns.

    Args:
        bank: the resident policies.
        host: address to listen at; the default takes connections from this machine only.
        port: 0 lets the system choose; the real one is in the address that is printed and passed on.
        token: secret that clients must send; see `read_token`.
        ready: called with the base address (`http://host:port`) once requests are answered.
        ready_file: gets that address as one line, atomically, once requests are answered.
        max_message_bytes: larger requests are refused (close code 1009, HTTP 413).
        drain_s: longest wait for requests under way at shutdown, in seconds.

    Raises:
        ValueError: no robots, an unusable robot name or card, or an address that cannot be listened at.
    """
    check_bank(bank)
    if token is None and not _is_loopback(host):
        warnings.warn(
            f"serving on {host} without a token: anyone who reaches this port drives the robots", stacklevel=2
        )
    with _listening(host, port) as listener:
        service = PolicyService(bank, token, max_message_bytes)
        names = ", ".join(sorted(bank.robots()))

        def report(url: str) -> None:
            print(f"serving {names} on {url}", flush=True)
            if ready_file is not None:
                _write_line(Path(ready_file), url)
            if ready is not None:
                ready(url)

        server = _DrainingServer(service, listener, report, drain_s)
        try:
            with _quiet_signals(server):
                server.run(sockets=[listener])
        finally:
            service.close()
            if ready_file is not None:
                Path(ready_file).unlink(missing_ok=True)


class ServerThread:
    """A server in a thread of this process, for tests and notebooks; a context manager with `.url`.

    Args:
        bank: the resident policies.
        token: secret that clients must send.
        max_message_bytes: larger requests are refused.
        drain_s: longest wait for requests under way at the end, in seconds.
    """

    def __init__(
        self,
        bank: Bank,
        token: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        drain_s: float | int = 5,
    ) -> None:
        check_bank(bank)
        self.bank = bank
        self.service = PolicyService(bank, token, max_message_bytes)
        self.url = ""
        self._ready = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = _DrainingServer(self.service, self._listener, self._report, drain_s)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the server did not start within 30 s")
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._thread.join(30)
        self.service.close()

    def stop(self) -> None:
        """Begins shutdown, as SIGTERM does; returns at once."""
        self._server.should_exit = True

    def _report(self, url: str) -> None:
        self.url = url
        self._ready.set()


class _FalseAlarm(logging.Filter):
    """Drops uvicorn's complaint about every websocket that was refused with an answer (it was answered)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "without completing handshake" not in record.getMessage()


_FALSE_ALARM = _FalseAlarm()


class _DrainingServer(uvicorn.Server):
    """uvicorn, told when it is ready, and finishing requests under way before it closes connections."""

    def __init__(
        self,
        service: PolicyService,
        listener: socket.socket,
        report: Callable[[str], None],
        drain_s: float | int,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http="h11",
                ws=LingeringWebSocket,
                ws_max_size=service.max_message_bytes,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_FALSE_ALARM)
        self._service = service
        self._listener = listener
        self._report = report
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._report(base_url(self._listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.drain(self._drain_s, hurry=lambda: self.force_exit)
        await super().shutdown(sockets)


def check_bank(bank: Bank) -> None:
    """Refuses to start with robots that nobody could ask for.

    Raises:
        ValueError: no robots, a name that is no path segment, or a card that cannot be sent.
    """
    cards = bank.robots()
    if not cards:
        raise ValueError("no robots to serve; wanted at least one adapter bundle")
    for name, card in cards.items():
        if not is_robot_name(name):
            raise ValueError(
                f"robot name {name!r}: wanted letters, digits, '_', '.', '-', starting with a letter or digit"
            )
        try:
            pack(card)
            json.dumps(card)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"card of robot {name}: {error}; wanted plain numbers, strings, lists and dicts"
            ) from None


def base_url(listener: socket.socket) -> str:
    """`http://host:port` of a listening socket; a wildcard address is given as this machine's loopback."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen on {host}:{port} ({error}); choose another --port, 0 for any"
        ) from None
    with listener:
        yield listener


@contextlib.contextmanager
def _quiet_signals(server: uvicorn.Server) -> Iterator[None]:
    """uvicorn raises the signal that ended it again; here a finished shutdown is a normal return instead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _write_line(path: Path, line: str) -> None:
    """Writes so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(line + "\n", encoding="utf-8")
    os.replace(temporary, path)
