"""The calling side of a streaming hop (router to decode, decode to prefill): frames in, liveness enforced.

A stream that is silent for SILENT_S (WorkerSilent), whose engine sits in one step for too long, or that ends without a
last frame raises WorkerLost. Leaving the context closes the connection, which cancels everything behind it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

import aiohttp
import msgspec

from penstock.errors import Overloaded, RequestError, WorkerLost, WorkerSilent, reason_of
from penstock.post import Answer, Posts
from penstock.protocol import SILENT_S, STUCK_FACTOR, STUCK_S, Accepted, Error, Frame, Heartbeat, Pause, decode_frame
from penstock.silence import LATE_S, HeardWithin
from penstock.telemetry.trace import current

MAX_LINE_BYTES = 64 * 2**20
"""Longest frame: a ticket of a million blocks. Only a reader that needs it holds so much."""
NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for other bytes than it expects."""

_MOST_REFUSAL_BYTES = 2**20
_Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Refusal(msgspec.Struct):
    """The JSON body of a worker's 4xx or 503 answer."""

    message: str
    code: str = "invalid_request"
    field: str | None = None
    retry_after_s: Pause | None = None


class Readiness(msgspec.Struct):
    """The JSON body of a ready worker's answer on /ready."""

    ready: bool
    max_context_tokens: _Positive | None = None
    """Longest prompt plus answer that fits there; less than the model's own limit when memory is short."""
    max_samples: _Positive | None = None
    """Most answers to one prompt: the sequences that its engine batches."""
    kind: str = ""
    """Device and number format: workers of one kind take as long for the same work."""
    block_size: _Positive | None = None
    """Tokens per KV block."""
    step_tokens: _Positive | None = None
    """Most tokens of one step."""
    model: str = ""
    """Fingerprint of tokenizer and architecture (fingerprint.py): a router uses only workers of its own model."""
    layout: str = ""
    """Fingerprint of the KV cache's layout: only workers with equal ones are paired."""
    weights: str = ""
    """Fingerprint of the weights: an answer that began with some goes on with no others."""


class _Connector(aiohttp.TCPConnector):
    """With the connections of hops, so that they end with the session."""

    def __init__(self) -> None:
        super().__init__(limit=0, ttl_dns_cache=5)
        self.posts = Posts()

    async def close(self, *, abort_ssl: bool = False) -> None:
        self.posts.close()
        await super().close(abort_ssl=abort_ssl)


def new_session() -> aiohttp.ClientSession:
    """A client session, also for hops: no total timeout (liveness is by heartbeats), no limit of connections."""
    return aiohttp.ClientSession(
        connector=_Connector(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENT_S),
        read_bufsize=2**20,
    )


class Hop:
    """One open stream: `accepted` is its first frame; `next` gives the others (heartbeats are consumed here)."""

    def __init__(self, url: str, reader: "_FrameReader", accepted: Accepted) -> None:
        self.url = url
        self.accepted = accepted
        self._reader = reader

    async def next(self) -> Frame:
        """Raises WorkerLost when the stream falls silent, sticks or is cut: do not ask beyond the last frame."""
        while isinstance(frame := await self._reader.next(), Heartbeat):
            _check_not_stuck(self.url, frame)
        return frame

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """Frames up to and including the last. Raises as `next` does."""
        while True:
            yield await self.next()


@asynccontextmanager
async def open_hop(
    session: aiohttp.ClientSession, url: str, body: msgspec.Struct, *, max_line_bytes: int = MAX_LINE_BYTES
) -> AsyncIterator[Hop]:
    """Posts `body` to `url` and yields the stream once its first frame is there. No frame may be longer than
    `max_line_bytes`.

    Raises RequestError (the worker refused it with 4xx), Overloaded (503) or WorkerLost. The call is a span of the
    current trace, which continues at the worker.
    """
    with current().span(url.rpartition("/")[2], "client", url=url) as span:
        answer = await _post(session, url, body, span.headers)
        reader = _FrameReader(url, answer, max_line_bytes)
        try:
            if answer.status != 200:
                await _raise_refusal(url, answer)
            accepted = await reader.next()
            if isinstance(accepted, Error):
                raise WorkerLost(f"{url}: {accepted.message}")
            if not isinstance(accepted, Accepted):
                raise WorkerLost(f"{url} did not answer with an accepted frame but {type(accepted).__name__}")
            yield Hop(url, reader, accepted)
        finally:
            reader.close()


async def _post(session: aiohttp.ClientSession, url: str, body: msgspec.Struct, headers: Mapping[str, str]) -> Answer:
    connector = session.connector
    assert isinstance(connector, _Connector), "a session of new_session"
    try:
        async with HeardWithin(SILENT_S):
            return await connector.posts.post(url, msgspec.json.encode(body), headers)
    except TimeoutError as error:
        raise WorkerSilent(f"{url} did not answer within {SILENT_S} s") from error
    except OSError as error:
        raise WorkerLost(f"{url} does not answer: {reason_of(error)}") from error


class _FrameReader:
    """The frames of one answer: every wake-up takes all that has come, and one timer watches all waits for a line.

    (A timeout around each frame and a `readline` cost 20 us of CPU more per token, measured.)
    """

    def __init__(self, url: str, answer: Answer, max_line_bytes: int) -> None:
        self._url = url
        self._answer = answer
        self._max_line_bytes = max_line_bytes
        self._loop = asyncio.get_running_loop()
        self._lines: deque[bytes] = deque()
        self._begun: list[bytes] = []
        """The parts of a line whose end has not come."""
        self._until: float | None = None
        """When the wait for the next line becomes too long; None while nobody waits."""
        self._timer: asyncio.TimerHandle | None = None
        self._was_silent = False

    async def next(self) -> Frame:
        """Raises WorkerLost."""
        if not self._lines:
            await self._read_lines()
        try:
            frame: Frame = decode_frame(self._lines.popleft())
        except NO_JSON as error:
            raise WorkerLost(f"{self._url} sent a frame that is not of this protocol: {error}") from error
        return frame

    def close(self) -> None:
        """Closes the connection, unless its answer has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self._answer.close()

    async def _read_lines(self) -> None:
        """Waits until a line has come to its end, for SILENT_S at most."""
        self._until = self._loop.time() + SILENT_S
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._look)
        try:
            while not self._lines:
                self._take(await self._answer.read())
        except OSError as error:
            if self._was_silent:
                raise WorkerSilent(f"{self._url} was silent for {SILENT_S} s") from error
            raise WorkerLost(f"{self._url} was cut: {reason_of(error)}") from error
        finally:
            self._until = None

    def _take(self, data: bytes) -> None:
        if not data:
            raise WorkerLost(f"{self._url} ended without a last frame")
        *lines, rest = data.split(b"\n")
        if lines and self._begun:
            lines[0] = b"".join((*self._begun, lines[0]))
            self._begun.clear()
        if rest:
            self._begun.append(rest)
        if max(sum(map(len, self._begun)), *map(len, lines), 0) > self._max_line_bytes:
            raise WorkerLost(f"{self._url} sent a frame of over {self._max_line_bytes} bytes")
        self._lines.extend(lines)

    def _look(self) -> None:
        """The timer, which is set again only when it has gone off: a stream that flows sets it once in SILENT_S."""
        self._timer = None
        if self._until is None:
            return
        late_s = self._loop.time() - self._until
        if late_s > LATE_S:  # it was we who did nothing: what has come meanwhile waits to be read
            self._until += late_s + LATE_S
        if late_s < 0 or late_s > LATE_S:
            self._timer = self._loop.call_at(self._until, self._look)
        else:
            self._was_silent = True
            self._answer.cut()  # wakes who waits


def _check_not_stuck(url: str, beat: Heartbeat) -> None:
    limit_s = max(STUCK_S, STUCK_FACTOR * beat.predicted_s)
    if beat.step_s > limit_s:
        raise WorkerLost(f"{url} is stuck: {beat.step_s:.1f} s in step {beat.step} (limit {limit_s:.1f} s)")


async def _raise_refusal(url: str, answer: Answer) -> None:
    body = b""
    try:
        async with HeardWithin(SILENT_S):
            while len(body) <= _MOST_REFUSAL_BYTES and (part := await answer.read()):
                body += part
        refusal = msgspec.json.decode(body, type=Refusal)
    except (OSError, *NO_JSON) as error:  # not a worker, or another version
        raise Overloaded(f"{url} answered HTTP {answer.status} without saying why") from error
    if 400 <= answer.status < 500 and answer.status != 429:
        raise RequestError(refusal.message, field=refusal.field, code=refusal.code, status=answer.status)
    raise Overloaded(refusal.message, retry_after_s=refusal.retry_after_s)
