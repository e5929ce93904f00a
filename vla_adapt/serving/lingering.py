"""A websocket connection that is refused in a way the other side gets to see.

uvicorn answers a frame that is too large with close code 1009 and closes the socket at once. The unread rest
of the frame then makes the kernel reset the connection, and the reset may overtake the close code: the robot
sees a lost connection and tries again, for ever. So: say 1009, read the rest and drop it, then close.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

QUIET_S = 0.25
MAX_DISCARDED_FACTOR = 16


class LingeringWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's connection, which after a refusal reads on until the sender has been quiet for `QUIET_S`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._discarded: int | None = None

    def data_received(self, data: bytes) -> None:
        """Handles what arrives; after a refusal counts and drops it."""
        if self._discarded is None:
            super().data_received(data)
            return
        self._discarded += len(data)
        if self._discarded > MAX_DISCARDED_FACTOR * self.config.ws_max_size:
            self.transport.close()
        else:
            self._close_when_quiet()

    def handle_parser_exception(self) -> None:
        """Sends the close code (1009 too large, 1002 malformed, ...) and begins to drop what follows."""
        assert self.conn.close_sent is not None
        close = self.conn.close_sent
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._discarded = 0
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._close_when_quiet()

    def _close_when_quiet(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(QUIET_S, self.transport.close)
