"""HTTP/1.1 as a hop needs it: one POST on a kept connection, and the body of its answer as it comes.

aiohttp's client, which serves for everything else, takes 60 us of CPU more for such a call (bench.gateways).
"""

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

_PIECE_BYTES = 2**16
"""A body leaves in such pieces: a large one must not hold up other streams."""
KEPT_S = 15.0
"""A connection that was idle for longer is not used again: its peer may have gone without a word."""
_MOST_UNREAD_BYTES = 2**21
"""From so many bytes on that nobody has taken, no more are read from the connection."""


class _Target(NamedTuple):
    host: str
    port: int
    is_tls: bool
    start: bytes
    """The request's first lines."""


@lru_cache(1024)
def _target(url: str) -> _Target:
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if is_tls else 80)
    start = f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    return _Target(host, port, is_tls, start.encode("ascii"))


class Posts:
    """Calls, and the connections that they leave open for the next ones."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[Answer]] = {}
        self._open: set[Answer] = set()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> "Answer":
        """The answer, once its headers are there; to be closed. Raises OSError."""
        target = _target(url)
        loop, idle = asyncio.get_running_loop(), self._idle.setdefault((target.host, target.port), [])
        if idle and loop.time() - idle[-1].idle_since > KEPT_S:
            for old in idle:
                old.cut()
            idle.clear()
        while idle and idle[-1].is_closing:
            idle.pop()
        if idle:
            answer = idle.pop()
        else:
            tls = True if target.is_tls else None
            _, answer = await loop.create_connection(
                lambda: Answer(self._open, idle), target.host, target.port, ssl=tls
            )
        lines = [b"%b: %b\r\n" % (name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        try:
            await answer.ask(b"".join((target.start, *lines, b"content-length: %d\r\n\r\n" % len(body))), body)
        except BaseException:
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Cuts all connections."""
        for answer in list(self._open):
            answer.cut()


class Answer(asyncio.Protocol):
    """One connection, and the answer that comes over it now."""

    def __init__(self, open_ones: "set[Answer]", idle: "list[Answer]") -> None:
        """Adds itself to `open_ones` while it is open, and to `idle` when it can be asked again."""
        self._open_ones = open_ones
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._error: OSError | None = None
        self._is_asked = self._is_full = False
        self.idle_since = 0.0

    async def ask(self, head: bytes, body: bytes) -> None:
        """Sends a request, and returns when its answer begins. Raises OSError."""
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._num_unread = 0
        self._is_asked, self._is_sent, self._is_whole, self._can_stay = True, False, False, True
        self.status = 0
        self._transport.write(head + body[:_PIECE_BYTES])
        rest = memoryview(body)[_PIECE_BYTES:]
        while rest and not self.status:
            if self._is_full:
                await self._wait()
            else:
                self._transport.write(rest[:_PIECE_BYTES])
                rest = rest[_PIECE_BYTES:]
        self._is_sent = not rest
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since the last time, waiting for something; nothing at its end. Raises OSError."""
        while not self._parts and not self._is_whole:
            await self._wait()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._all_read()
        return data

    def close(self) -> None:
        """Keeps the connection for another call if all of the answer has come, else cuts it. Twice does no harm."""
        if not self._is_asked:
            return
        self._is_asked = False
        if self._is_whole and self._is_sent and self._can_stay and self._error is None and not self.is_closing:
            self._all_read()
            self.idle_since = self._loop.time()
            self._idle.append(self)
        else:
            self.cut()

    @property
    def is_closing(self) -> bool:
        """Whether it ends, though `connection_lost` may not have been told yet."""
        return self._transport.is_closing()

    def cut(self) -> None:
        """Ends the connection; who waits gets an error."""
        self._transport.abort()

    def _all_read(self) -> None:
        if self._num_unread > _MOST_UNREAD_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()
        self._num_unread = 0

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the connection tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open_ones.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._open_ones.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        if self._error is None:
            self._error = error if isinstance(error, OSError) else ConnectionResetError("the connection was closed")
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._is_asked:  # bytes that answer nothing
            self.cut()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = ConnectionError(f"it does not speak HTTP: {error}")
            self.cut()
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    # What the parser finds.

    def on_message_begin(self) -> None:
        self._can_stay &= not self._is_whole  # a second answer to one request

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        before, self._num_unread = self._num_unread, self._num_unread + len(body)
        if before <= _MOST_UNREAD_BYTES < self._num_unread:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._is_whole = True
        self._can_stay &= self._parser.should_keep_alive()
