"""A websocket connection that is refused in a way the other side gets to see.

uvicorn answers a frame that is too large with close code 1009 and closes the socket at once. The unread rest
of the frame then makes the kernel reset the connection, and the reset may overtake the close code: the robot
sees a lost connection and tries again, for ever. So: say 1009, read the rest and drop it, then close.

In the same way the connection that holds most is told 1013 (try again later) when the messages that arrive on
all of them, or wait to be taken, together need more memory than `MAX_UPLOADS` of the largest size.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from vla_adapt.serving.routes import MAX_UPLOADS

QUIET_S = 0.25
MAX_DISCARDED_FACTOR = 16


class LingeringWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's connection, which after a refusal reads on until the sender has been quiet for `QUIET_S`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._discarded: int | None = None
        self.held = 0  # bytes that arrived since a message was last taken

    def data_received(self, data: bytes) -> None:
        """Handles what arrives; after a refusal counts and drops it."""
        if self._discarded is None:
            self.held += len(data)
            super().data_received(data)
            self._bound_all()
            return
        self._discarded += len(data)
        if self._discarded > MAX_DISCARDED_FACTOR * self.config.ws_max_size:
            self.transport.close()
        else:
            self._close_when_quiet()

    async def receive(self) -> Any:
        """The next event for the application; a message is then no longer held here."""
        event = await super().receive()
        self.held = 0
        return event

    def _bound_all(self) -> None:
        sockets = [each for each in self.connections if isinstance(each, LingeringWebSocket)]
        if sum(each.held for each in sockets) > MAX_UPLOADS * self.config.ws_max_size:
            max(sockets, key=lambda each: each.held)._refuse()

    def _refuse(self) -> None:
        """Drops what this connection holds and begins to close it."""
        self.conn.fail(1013, "too many large messages are arriving at once; try again later")
        self.held, self.frames = 0, []
        if self.conn.close_sent is None:  # it sends before it was accepted
            self.transport.close()
            return
        while not self.queue.empty():
            self.queue.get_nowait()
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """Sends the close code (1009 too large, 1002 malformed, ...) and begins to drop what follows."""
        assert self.conn.close_sent is not None
        close = self.conn.close_sent
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._discarded = self.held = 0
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._close_when_quiet()

    def _close_when_quiet(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(QUIET_S, self.transport.close)
