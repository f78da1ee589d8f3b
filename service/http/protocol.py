"""uvicorn's HTTP/1.1 protocol with bounds: on connections, on waiting for a request's head, on slow readers.

uvicorn waits for headers as long as the client likes, and swallows the rest of a body that nobody reads. Here
each waiting has an end, so that half-open connections go away by themselves; and where all connections are
taken, the one that has been idle for longest gives way to a new one.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from array import array
from dataclasses import dataclass
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from service.errors import (
    HeadersTooLargeError,
    MalformedBodyError,
    OverloadedError,
    RequestTimeoutError,
    ServiceError,
)
from service.http.gathered_writes import GatheredWrites

IDLE_SECONDS = 1.0
"""A connection that was silent for so long may be closed to make room; a younger one is about to ask."""

LINGER_SECONDS = 1.0
"""So long the rest of a request is still taken after it was refused: a connection that is closed with bytes
unread is reset, and then the client may lose the answer. A body, answered before it had all come, may be
long: its rest has `header_timeout_seconds`."""

STALLED_SECONDS = 60.0
"""A client that reads nothing of its answer for so long is gone."""


@dataclass(frozen=True)
class ConnectionLimits:
    """max_connections: open at once. header_timeout_seconds: from a connection or a request's first byte to
    the end of its head; also for the rest of a body after the answer."""

    max_connections: int
    header_timeout_seconds: float


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration with ConnectionLimits."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(app, http=BoundedProtocol, ws="none", **options)
        self.limits = limits
        self.idle_connections: dict[BoundedProtocol, None] = {}
        """Those that may be idle, the longest idle first: finding it must cost little where many knock."""


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: BoundedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._idle_connections = config.idle_connections
        self._idle_since = self.loop.time()
        self._is_surplus = False
        self.is_lingering = False
        """Whether all was answered and the connection ends: what still comes is dropped."""
        self._input_timer: asyncio.TimerHandle | None = None
        self._output_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where all are busy."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _LingeringTransport(transport, self))
        self._is_surplus = not self._has_room()
        self._note_idle()
        if self._is_surplus and len(self.connections) > 2 * self._limits.max_connections:
            transport.abort()
            return
        self._watch_input()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self.is_lingering:
            return
        # Refused when it has asked, not before: its request would be unread, and see LINGER_SECONDS.
        self._is_surplus = self._is_surplus and not self._has_room()
        if self._is_surplus:
            self._refuse(OverloadedError("All connections are taken. Try again later."))
            return
        super().data_received(data)
        self._watch_input()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self._output_timer is None:
            self._output_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        _cancel(self._output_timer)
        self._output_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._idle_connections.pop(self, None)
        _cancel(self._input_timer)
        self._input_timer = None
        _cancel(self._output_timer)
        self._output_timer = None
        super().connection_lost(exc)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        """An answer was sent."""
        self._note_idle()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch_input()

    def shutdown(self) -> None:
        """The server is ending. What was asked before is answered, and the answer ends the connection."""
        if self.is_lingering:
            self._linger(LINGER_SECONDS)
        elif not (self.is_idle and self._has_unread()):
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed."""
        # Called while the parser's error is handled.
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        self._refuse(
            HeadersTooLargeError() if too_large else MalformedBodyError("The request is not valid HTTP/1.1.")
        )

    # Ours

    def linger_for_body(self) -> bool:
        """Put off closing where a body was answered before it had all come; whether that is so."""
        if self.is_lingering or not self.is_idle or self.conn.their_state is not h11.SEND_BODY:
            return False
        self._linger(self._limits.header_timeout_seconds)
        return True

    def _linger(self, seconds: float) -> None:
        self.is_lingering = True
        _cancel(self._input_timer)
        self._input_timer = self.loop.call_later(seconds, self.transport.close)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _watch_input(self) -> None:
        """Let the rest of a head, or of a body that nobody reads, take no longer than it may."""
        if self.is_lingering:
            return
        waiting = self.conn.their_state is h11.IDLE or (
            self.conn.their_state is h11.SEND_BODY and self.is_idle
        )
        if not waiting or self.transport.is_closing():
            _cancel(self._input_timer)
            self._input_timer = None
        elif self._input_timer is None:
            self._input_timer = self.loop.call_later(
                self._limits.header_timeout_seconds, self._end_waiting_for_input
            )

    def _end_waiting_for_input(self) -> None:
        self._input_timer = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(RequestTimeoutError())
        else:
            self.is_lingering = True  # It had its time.
            self.transport.close()

    def _has_room(self) -> bool:
        """Whether this connection may stay: there are few enough, or the longest idle one went for it."""
        if len(self.connections) <= self._limits.max_connections:
            return True
        latest = self.loop.time() - IDLE_SECONDS
        idle = self._idle_connections
        while idle:
            longest = next(iter(idle))
            if longest.is_idle and longest._idle_since > latest:
                return False
            # One that is busy, or about to be, comes back when it was answered.
            del idle[longest]
            if longest.is_idle and longest is not self and not longest._has_unread():
                self.connections.discard(longest)
                longest.transport.abort()
                return True
        return False

    def _note_idle(self) -> None:
        self._idle_since = self.loop.time()
        self._idle_connections.pop(self, None)
        if self in self.connections:
            self._idle_connections[self] = None

    def _has_unread(self) -> bool:
        """Whether bytes have come that were not read yet: where the loop is late, a request."""
        num_bytes = array("i", [0])
        try:
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, num_bytes)
        except OSError:
            return False
        return num_bytes[0] > 0

    def _refuse(self, problem: ServiceError) -> None:
        """Answer what the application never gets to see, and close."""
        answer = problem.to_response()
        headers = [*answer.raw_headers, (b"x-content-type-options", b"nosniff")]
        if (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        events = (
            h11.Response(
                status_code=answer.status_code, headers=headers, reason=STATUS_PHRASES[answer.status_code]
            ),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        try:
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # An answer is on its way already; there is nothing to add to it.
        if not self.is_idle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger(LINGER_SECONDS)


class _LingeringTransport(GatheredWrites):
    """Is closed by uvicorn after the last answer, which may be too early: see LINGER_SECONDS."""

    def __init__(self, transport: asyncio.Transport, protocol: BoundedProtocol) -> None:
        super().__init__(transport, protocol.loop)
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self._protocol.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """Write, then close, or have it done when the rest of the request has come."""
        if not self._protocol.linger_for_body():
            super().close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
