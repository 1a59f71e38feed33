"""A client's connection, bounded: how many there are, how large headers are and how long they take, and how long a
client may take nothing of what is sent to it.

Without this a client that sends a header for ever, or opens connections for ever, costs the router memory without end.
"""

import asyncio
import logging
import socket
import struct
from dataclasses import dataclass
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from penstock.errors import Overloaded, PenstockError, RequestError
from penstock.router.corked import Corked, offer_is_free
from penstock.router.dialect import dialect_of
from penstock.router.flow.advice import advice_headers
from penstock.router.openai.errors import error_status

STALL_S = 8.0
"""A client with a full connection that accepts no byte for so long is cut off."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Of one router."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float


class ClientConnection(HttpToolsProtocol):
    """Uvicorn's, within limits. Use `limited` for a class with limits of its own."""

    limits = ConnectionLimits(max_connections=10_000, max_header_bytes=2**16, header_timeout_s=30.0)

    _check: asyncio.TimerHandle | None = None
    _left = 0
    _header_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    """Of whole headers."""
    _received_bytes = 0
    """Since the headers began, or since the last of the body: a line without an end is told of by nobody else."""
    _in_headers = True
    _is_refused = False

    @classmethod
    def limited(cls, limits: ConnectionLimits) -> "type[ClientConnection]":
        return type("LimitedConnection", (cls,), {"limits": limits})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", Corked(transport, self.loop)))
        most = self.limits.max_connections
        if len(self.connections) > most:
            self._refuse(Overloaded(f"the router has {most} connections, and takes no more"))
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._in_headers and self._header_timer is None:  # another request on a connection that was idle
            self._expect_headers()
        self._received_bytes += len(data)
        super().data_received(data)
        if self._received_bytes > self.limits.max_header_bytes:
            if self._in_headers:
                self._refuse_headers()
            else:  # trailers, say, without an end
                self._cut()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        offer_is_free(cast("Scope", self.scope), lambda: not self.flow.write_paused)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it is a trailer's: nobody reads those, and none may pass for a header
            super().on_header(name, value)
            self._header_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_header_timer()
        if self._header_bytes + len(self.url) > self.limits.max_header_bytes:
            self._refuse_headers()
        else:
            super().on_headers_complete()
        self._header_bytes = self._received_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._received_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            super().on_message_complete()
        self._in_headers = True
        self._received_bytes = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's word on what is not HTTP/1.1, or has two meanings: TLS, HTTP/2, two lengths."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self._cut()  # another status line would be taken for a part of the answer
        else:
            self._refuse(RequestError(msg, code="invalid_http"))

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_timeout_s, self._time_headers_out)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_headers_out(self) -> None:
        if self._received_bytes:
            said = f"the headers took longer than {self.limits.header_timeout_s:g} s"
            self._refuse(RequestError(said, status=408, code="header_timeout"))
        else:
            self.transport.close()  # it never asked for anything

    def _refuse_headers(self) -> None:
        most = self.limits.max_header_bytes
        self._refuse(RequestError(f"the headers are longer than {most} bytes", status=431, code="headers_too_large"))

    def _cut(self) -> None:
        """The client broke the rules where no answer can tell it so."""
        self._is_refused = True
        self.transport.abort()

    def _refuse(self, error: PenstockError) -> None:
        """An answer without a request, and the end of the connection."""
        self._is_refused = True
        self._stop_header_timer()
        body = dialect_of(cast("Scope | None", self.scope)).error_body(error, None)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *advice_headers(error),
        ]
        lines = [STATUS_LINE[error_status(error)], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body]
        self.transport.write(b"".join(lines))
        self.transport.close()

    def _watch(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._check = self.loop.call_later(STALL_S, self._look)

    def _unwatch(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look(self) -> None:
        """Nothing is added while writing is paused, so that any progress shows."""
        if self.transport.get_write_buffer_size() < self._left:
            self._watch()
            return
        log.warning("a client accepted nothing for %g s: its connection is cut", STALL_S)
        self._check = None
        # With a reset: to a client of HTTP/1.0, and a proxy that speaks it, a mere close is the good end of an answer.
        no_linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.transport.abort()
