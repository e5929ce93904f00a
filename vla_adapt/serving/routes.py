"""All addresses of the server as one ASGI application: websockets per robot, REST, health, metrics."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from vla_adapt.serving.access import check_origin, check_token, find_robot
from vla_adapt.serving.counters import CONTENT_TYPE
from vla_adapt.serving.protocol import WireError, error_text, pack, unpack
from vla_adapt.serving.rest import act_reply, read_act_body
from vla_adapt.serving.service import PolicyService

MAX_CONNECTIONS = 256
MAX_UPLOADS = 16  # of the largest size that are held at a time while they arrive: slow senders cost memory
_STATUS = {
    "unauthorized": 401,
    "forbidden_origin": 403,
    "unknown_robot": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "internal": 500,
    "draining": 503,
    "overloaded": 503,
}


class _Endpoints:
    """The handlers, sharing one service."""

    def __init__(self, service: PolicyService) -> None:
        self.service = service
        self._uploading = 0  # bytes of bodies that are arriving

    async def robot_socket(self, socket: WebSocket) -> None:
        """openpi's protocol: metadata first, then one reply (binary) or error (text) per message."""
        try:
            self._check(socket)
            robot = find_robot(_robot_in(socket.scope["path"]), self.service.bank.robots())
            if self.service.draining:
                raise WireError("draining", "the server is shutting down; reconnect in a moment")
            if self.service.metrics.connections >= MAX_CONNECTIONS:
                raise WireError("overloaded", f"{MAX_CONNECTIONS} robots are connected already")
        except WireError as error:
            self.service.metrics.count("", error.code)
            await socket.send_denial_response(_error_response(error))
            return
        self.service.metrics.connections += 1
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await socket.accept()
                await socket.send_bytes(pack(self.service.greeting(robot)))
                await self._converse(socket, robot)
        finally:
            self.service.metrics.connections -= 1

    async def _converse(self, socket: WebSocket, robot: str) -> None:
        previous_ms: float | None = None
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            received = time.perf_counter()
            try:
                with self.service.admitted():
                    reply = await self._answer_frame(robot, message)
                    if previous_ms is not None:
                        reply["server_timing"]["prev_total_ms"] = previous_ms
                    await socket.send_bytes(pack(reply))
            except WireError as error:
                await socket.send_text(error_text(error.code, error.message))
            previous_ms = 1000 * (time.perf_counter() - received)

    async def _answer_frame(self, robot: str, message: Any) -> dict[str, Any]:
        data = message.get("bytes")
        if data is None:
            raise WireError("text_frame", "got a text frame, wanted a binary frame of msgpack")
        return await self.service.answer(lambda: (robot, unpack(data, self.service.max_message_bytes)))

    async def act(self, request: Request) -> Response:
        """`POST /act`, see `vla_adapt.serving.rest` for the bodies."""
        self._check(request)
        body = await self._body(request)
        with self.service.admitted():
            decoded = []

            def read() -> tuple[Any, Any]:
                decoded.append(read_act_body(body))
                return decoded[0].robot, decoded[0].observation

            answer = await self.service.answer(read)
            return Response(act_reply(decoded[0], answer), media_type="application/json")

    async def healthz(self, request: Request) -> Response:
        """The process lives; answers during inference too."""
        return PlainTextResponse("OK\n")

    async def readyz(self, request: Request) -> Response:
        """New requests are taken."""
        ready = self.service.is_ready
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def robots(self, request: Request) -> Response:
        """The cards of all robots."""
        self._check(request)
        return Response(json.dumps({"robots": self.service.bank.robots()}), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        self._check(request)
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE)

    async def _body(self, request: Request) -> bytes:
        """One that is too large is read on (up to 4 x), so that its sender gets to see the answer."""
        limit = self.service.max_message_bytes
        chunks: list[bytes] = []
        size = held = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    self._uploading, held = self._uploading - held, 0
                    chunks.clear()
                    if size > 4 * limit:
                        break
                    continue
                if self._uploading + len(chunk) > MAX_UPLOADS * limit:
                    raise WireError("overloaded", "too many bodies are arriving at once; try again later")
                self._uploading, held = self._uploading + len(chunk), held + len(chunk)
                chunks.append(chunk)
        finally:
            self._uploading -= held
        if size > limit:
            raise WireError("too_large", f"body of more than {limit} bytes; send images as base64 JPEG")
        return b"".join(chunks)

    def _check(self, connection: HTTPConnection) -> None:
        token, headers = self.service.token, connection.headers
        check_origin(headers.get("origin"), headers.get("host"), guarded=token is not None)
        check_token(headers.get("authorization"), token)


def create_app(service: PolicyService) -> Starlette:
    """The ASGI application around `service`."""
    handle = _Endpoints(service)
    routes = [
        Route("/act", handle.act, methods=["POST"]),
        Route("/healthz", handle.healthz, methods=["GET"]),
        Route("/readyz", handle.readyz, methods=["GET"]),
        Route("/v1/robots", handle.robots, methods=["GET"]),
        Route("/metrics", handle.metrics, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {
        WireError: _on_wire_error,
        HTTPException: _on_http_exception,
        Exception: _on_crash,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    nowhere = app.router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        """Takes every websocket, whatever its path: a wrong path then gets a typed answer too."""
        if scope["type"] == "websocket":
            await handle.robot_socket(WebSocket(scope, receive, send))
        else:
            await nowhere(scope, receive, send)

    app.router.default = default
    return app


def _robot_in(path: str) -> str:
    """The name asked for by a websocket's path; the root asks for the only robot."""
    return "" if path == "/" else path.removeprefix("/robots/")


def _error_response(error: WireError) -> Response:
    status = _STATUS.get(error.code, 400)
    headers = (
        {"Retry-After": "1"} if status == 503 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    )
    return Response(
        error_text(error.code, error.message) + "\n", status, headers, media_type="application/json"
    )


async def _on_wire_error(request: Request, error: Any) -> Response:
    return _error_response(error)


async def _on_http_exception(request: Request, error: Any) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_message")
    hint = "there are POST /act, GET /healthz, /readyz, /v1/robots, /metrics and websockets at /robots/<name>"
    return _error_response(WireError(code, f"{request.method} {request.url.path}: {error.detail}; {hint}"))


async def _on_crash(request: Request, error: Exception) -> Response:
    return _error_response(WireError("internal", "the server failed on this request; see its log"))
