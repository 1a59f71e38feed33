"""A client's connection, bounded: how many there are, how large headers are and how long they take, and how long a
client may take nothing of what is sent to it.

Without this a client that sends a header for ever, or opens connections for ever, costs the router memory without end.
"""

import asyncio
import logging
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from penstock.errors import Overloaded, PenstockError, RequestError
from penstock.router.corked import Corked, offer_is_free
from penstock.router.dialect import dialect_of
from penstock.router.flow.advice import advice_headers
from penstock.router.openai.errors import error_status

STALL_S = 8.0
"""A client with a full connection that accepts no byte for so long is cut off."""

_MOST_UNANSWERED = 16
"""Requests on one connection: clients that send the next before the last is answered are rare, and none sends many."""

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
    _in_headers = False
    """From the first byte of a request line: line ends before it belong to no request."""
    _is_refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unanswered: deque[RequestResponseCycle] = deque()
        """Oldest first. Uvicorn itself keeps the newest, and those that wait for their turn."""

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
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._received_bytes += len(data)
        try:
            self._feed(memoryview(data))
        except HttpParserCallbackError as error:
            log.warning("a client's URL or headers cannot be read: %r", error.__context__)
            self._refuse_http("its URL or headers cannot be read")
            return
        except HttpParserUpgrade:
            self._refuse_http("CONNECT is for proxies")
            return
        except HttpParserError as error:
            other = data.startswith((b"\x16", b"PRI "))
            hint = "; TLS and HTTP/2 are not spoken here, so URLs begin with http://" if other else ""
            self._refuse_http(f"{error}{hint}")
            return
        if self._received_bytes > self.limits.max_header_bytes:
            if self._in_headers:
                self._refuse_headers()
            else:  # trailers, say, without an end
                self._cut()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        offer_is_free(cast("Scope", self.scope), lambda: not self.flow.write_paused)
        self._in_headers = True
        if self._header_timer is None and not self._is_answering():
            self._expect_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it is a trailer's: nobody reads those, and none may pass for a header
            super().on_header(name, value)
            self._header_bytes += len(name) + len(value) + 4  # and a colon, a space and the end of the line

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._is_refused:  # what follows in the same piece
            return
        self._stop_header_timer()
        if self._header_bytes + len(self.url) > self.limits.max_header_bytes:
            self._refuse_headers()
        elif said := self._fault():
            self._refuse_http(said)
        elif len(self._unanswered) == _MOST_UNANSWERED:
            log.warning(
                "a client sent more than %d requests without an answer: its connection is cut", _MOST_UNANSWERED
            )
            self._cut()
        elif self._is_to_be_served():
            super().on_headers_complete()
            self._unanswered.append(self.cycle)
        self._header_bytes = self._received_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._received_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_to_be_served():
            super().on_message_complete()
        self._received_bytes = 0

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        if self._in_headers and not self._is_answering():  # the next request began meanwhile
            self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def _feed(self, data: memoryview) -> None:
        """Parses `data` as if nobody asked for another protocol, as RFC 9110, 7.8, lets a server do.

        The parser stops after headers that ask so, takes the message for complete and its body for the other protocol.
        A new one is given them without `upgrade`, and then what follows them. Raises HttpParserError, and
        HttpParserUpgrade when they still ask so.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as stopped:
                head = self._head_without_upgrade()
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)
                data = data[stopped.args[0] :]
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def _fault(self) -> str:
        """Why others may read these headers in another way, which RFC 9112 (2.5, 3.2 and 6.1) has a server refuse."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return f"it is of version {version}"
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not (hosts or version == "1.0"):
            return f"a request of HTTP/1.1 has one Host header, not {len(hosts)}"
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        return "" if codings in ([], [b"chunked"]) else "the only transfer coding that is spoken here is chunked"

    def _is_to_be_served(self) -> bool:
        return not self._is_refused and not self.parser.should_upgrade()

    def _is_answering(self) -> bool:
        """Whether a status line that is written now would be taken for that of an earlier request, or a part of it."""
        cycle = self.cycle  # of the newest request
        if self.pipeline:
            return True
        return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)

    def _expect_headers(self) -> None:
        self._unset_keepalive_if_required()
        self._header_timer = self.loop.call_later(self.limits.header_timeout_s, self._time_headers_out)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_headers_out(self) -> None:
        if self._in_headers:
            said = f"the headers took longer than {self.limits.header_timeout_s:g} s"
            self._refuse(RequestError(said, status=408, code="header_timeout"))
        else:
            self.transport.close()  # it never asked for anything

    def _refuse_http(self, why: str) -> None:
        log.warning("a client's request is not valid HTTP/1.1, and refused: %s", why)
        self._refuse(RequestError(f"this is no valid HTTP/1.1 request: {why}", code="invalid_http"))

    def _refuse_headers(self) -> None:
        most = self.limits.max_header_bytes
        self._refuse(RequestError(f"the headers are longer than {most} bytes", status=431, code="headers_too_large"))

    def _cut(self) -> None:
        """The client broke the rules where no answer can tell it so."""
        self._is_refused = True
        self.transport.abort()

    def _refuse(self, error: PenstockError) -> None:
        """An answer without a request, if it cannot be taken for that of another, and the end of the connection."""
        if self._is_refused:
            return
        if self._is_answering():
            self._cut()
            return
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
