"""HTTP/1.1 as a hop needs it: one POST on a kept connection, and the body of its answer as it comes.

aiohttp's client serves for everything else; with it a request of one token takes a fifth more of the router's CPU.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

_PIECE_BYTES = 2**16
"""A body leaves in such pieces: a large one must not hold up other streams."""
KEPT_S = 15.0
"""A connection that is idle for so long is closed: its peer may have gone without a word."""
_MOST_UNREAD_BYTES = 2**21
"""From so many bytes on that nobody has taken, no more are read from the connection."""


class _Origin(NamedTuple):
    """What a connection leads to."""

    host: str
    port: int
    is_tls: bool


class _Unheard(ConnectionResetError):
    """The connection ended before the first byte of an answer."""


@lru_cache(1024)
def _target(url: str) -> tuple[_Origin, bytes]:
    """Where a request goes, and its first lines."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    origin = _Origin(parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)
    start = f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    return origin, start.encode("ascii")


class Posts:
    """Calls, and the connections that they leave open for the next ones."""

    def __init__(self) -> None:
        self._open: set[Answer] = set()
        self._idle: dict[_Origin, list[Answer]] = {}
        """Of the open ones those that can be asked; the latest used is the last."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> "Answer":
        """The answer, once its headers are there; to be closed. Raises OSError.

        A kept connection may end just as it is used. If not a byte of an answer has come the request is sent again,
        over a new one: its server may have received it twice.
        """
        origin, start = _target(url)
        lines = [b"%b: %b\r\n" % (name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        head = b"".join((start, *lines, b"content-length: %d\r\n\r\n" % len(body)))
        if (kept := self._take(origin)) is not None:
            with suppress(_Unheard):
                await kept.ask(head, body)
                return kept
        connect = asyncio.get_running_loop().create_connection
        _, answer = await connect(lambda: Answer(self, origin), origin.host, origin.port, ssl=origin.is_tls or None)
        await answer.ask(head, body)
        return answer

    def close(self) -> None:
        """Cuts all connections."""
        for answer in list(self._open):
            answer.cut()

    def _take(self, origin: _Origin) -> "Answer | None":
        idle = self._idle.get(origin, [])
        while idle:
            if not (answer := idle.pop()).is_closing:
                return answer
        return None

    # What a connection tells.

    def opened(self, answer: "Answer") -> None:
        """From now on `close` cuts it."""
        self._open.add(answer)

    def idle(self, answer: "Answer") -> None:
        """It can be asked again."""
        self._idle.setdefault(answer.origin, []).append(answer)

    def lost(self, answer: "Answer") -> None:
        """It has ended, whoever ended it."""
        self._open.discard(answer)
        idle = self._idle.get(answer.origin, [])
        if answer in idle:
            idle.remove(answer)
        if not idle:
            self._idle.pop(answer.origin, None)


class Answer(asyncio.Protocol):
    """One connection, and the answer that comes over it now."""

    def __init__(self, posts: Posts, origin: _Origin) -> None:
        self.origin = origin
        self._posts = posts
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._error: OSError | None = None
        self._is_asked = self._is_heard = self._is_full = False
        self._end_of_idleness: asyncio.TimerHandle | None = None

    async def ask(self, head: bytes, body: bytes) -> None:
        """Sends a request, and returns when its answer begins; closes itself if none does. Raises OSError."""
        if self._end_of_idleness is not None:
            self._end_of_idleness.cancel()
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._num_unread = 0
        self._is_asked = self._can_stay = True
        self._is_sent = self._is_heard = self._is_whole = False
        self.status = 0
        try:
            await self._send(head, body)
            while not self.status:
                await self._wait()
        except BaseException:
            self.close()
            raise

    async def _send(self, head: bytes, body: bytes) -> None:
        """Until all is written or an answer has begun."""
        self._write(head + body[:_PIECE_BYTES])
        rest = memoryview(body)[_PIECE_BYTES:]
        while rest and not self.status:
            if self._is_full:
                await self._wait()
            else:
                self._write(rest[:_PIECE_BYTES])
                rest = rest[_PIECE_BYTES:]
        self._is_sent = not rest

    def _write(self, data: bytes | memoryview) -> None:
        if self._error is not None:
            raise self._error
        self._transport.write(data)

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
            self._end_of_idleness = self._loop.call_later(KEPT_S, self.cut)
            self._posts.idle(self)
        else:
            self.cut()

    @property
    def is_closing(self) -> bool:
        """Whether it ends, though `connection_lost` may not have been told yet."""
        return self._transport.is_closing()

    def cut(self) -> None:
        """Ends the connection; who waits gets an error."""
        self._error = self._error or ConnectionAbortedError("the connection was closed")
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
        self._posts.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._posts.lost(self)
        if self._end_of_idleness is not None:
            self._end_of_idleness.cancel()
        if self._error is None:
            kind = ConnectionResetError if self._is_heard else _Unheard
            self._error = kind(str(error or "the connection was closed"))
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not self._is_asked:  # bytes that answer nothing
            self.cut()
            return
        self._is_heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
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
        if (status := self._parser.get_status_code()) >= 200:  # else there is more to come: 100, 103
            self.status = status

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        before, self._num_unread = self._num_unread, self._num_unread + len(body)
        if before <= _MOST_UNREAD_BYTES < self._num_unread:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status:
            self._is_whole = True
            self._can_stay &= self._parser.should_keep_alive()
