"""The calling side of a streaming hop (router to decode, decode to prefill): frames in, liveness enforced.

A stream that is silent for SILENT_S, whose engine sits in one step for too long, or that ends without a last frame
raises WorkerLost. Leaving the context closes the connection, which cancels everything behind it.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp.http_exceptions import LineTooLong

from penstock.errors import Overloaded, RequestError, WorkerLost
from penstock.protocol import SILENT_S, STUCK_FACTOR, STUCK_S, Accepted, Error, Frame, Heartbeat, decode_frame
from penstock.telemetry.trace import current

MAX_LINE_BYTES = 64 * 2**20
"""Longest frame: a ticket of a million blocks. Only a reader that needs it holds so much."""


class Refusal(msgspec.Struct):
    """The JSON body of a worker's 4xx or 503 answer."""

    message: str
    code: str = "invalid_request"
    field: str | None = None
    retry_after_s: float | None = None


class Readiness(msgspec.Struct):
    """The JSON body of a ready worker's answer on /ready."""

    ready: bool
    max_context_tokens: int | None = None
    """Longest prompt plus answer that fits there; less than the model's own limit when memory is short."""
    max_samples: int | None = None
    """Most answers to one prompt: the sequences that its engine batches."""
    kind: str = ""
    """Device and number format: workers of one kind take as long for the same work."""
    block_size: int | None = None
    """Tokens per KV block."""
    step_tokens: int | None = None
    """Most tokens of one step."""
    model: str = ""
    """Fingerprint of tokenizer and architecture (fingerprint.py): a router uses only workers of its own model."""
    layout: str = ""
    """Fingerprint of the KV cache's layout: only workers with equal ones are paired."""


def new_session() -> aiohttp.ClientSession:
    """A client session for hops: no total timeout (liveness is by heartbeats), no limit of connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=5),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENT_S),
        read_bufsize=2**20,
    )


class Hop:
    """One open stream: `accepted` is its first frame; iterate for the others (heartbeats are consumed here)."""

    def __init__(self, url: str, response: aiohttp.ClientResponse, accepted: Accepted) -> None:
        self.url = url
        self.accepted = accepted
        self._response = response

    async def frames(self) -> AsyncGenerator[Frame, None]:
        """Frames up to and including the last. Raises WorkerLost when the stream falls silent, sticks or is cut."""
        while True:
            frame = await _next_frame(self.url, self._response)
            if isinstance(frame, Heartbeat):
                _check_not_stuck(self.url, frame)
                continue
            yield frame


@asynccontextmanager
async def open_hop(session: aiohttp.ClientSession, url: str, body: msgspec.Struct) -> AsyncIterator[Hop]:
    """Posts `body` to `url` and yields the stream once its first frame is there.

    Raises RequestError (the worker refused it with 4xx), Overloaded (503) or WorkerLost. The call is a span of the
    current trace, which continues at the worker.
    """
    with current().span(url.rpartition("/")[2], "client", url=url) as span:
        async with _open_hop(session, url, body, span.headers) as hop:
            yield hop


@asynccontextmanager
async def _open_hop(
    session: aiohttp.ClientSession, url: str, body: msgspec.Struct, headers: Mapping[str, str]
) -> AsyncIterator[Hop]:
    try:
        async with asyncio.timeout(SILENT_S):
            # As a file: aiohttp writes large bytes in one piece, which would hold up every other stream.
            response = await session.post(url, data=io.BytesIO(msgspec.json.encode(body)), headers=headers)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise WorkerLost(f"{url} does not answer: {error or type(error).__name__}") from error
    try:
        if response.status != 200:
            await _raise_refusal(url, response)
        accepted = await _next_frame(url, response)
        if isinstance(accepted, Error):
            raise WorkerLost(f"{url}: {accepted.message}")
        if not isinstance(accepted, Accepted):
            raise WorkerLost(f"{url} did not answer with an accepted frame but {type(accepted).__name__}")
        yield Hop(url, response, accepted)
    finally:
        response.close()


async def _next_frame(url: str, response: aiohttp.ClientResponse) -> Frame:
    try:
        async with asyncio.timeout(SILENT_S):
            line = await response.content.readline(max_line_length=MAX_LINE_BYTES)
    except TimeoutError as error:
        raise WorkerLost(f"{url} was silent for {SILENT_S} s") from error
    except LineTooLong as error:
        raise WorkerLost(f"{url} sent a frame of over {MAX_LINE_BYTES} bytes") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise WorkerLost(f"{url} was cut: {error or type(error).__name__}") from error
    if not line.endswith(b"\n"):
        raise WorkerLost(f"{url} ended without a last frame")
    try:
        frame: Frame = decode_frame(line)
    except msgspec.DecodeError as error:
        raise WorkerLost(f"{url} sent a frame that is not of this protocol: {error}") from error
    return frame


def _check_not_stuck(url: str, beat: Heartbeat) -> None:
    limit_s = max(STUCK_S, STUCK_FACTOR * beat.predicted_s)
    if beat.step_s > limit_s:
        raise WorkerLost(f"{url} is stuck: {beat.step_s:.1f} s in step {beat.step} (limit {limit_s:.1f} s)")


async def _raise_refusal(url: str, response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(SILENT_S):
            body = await response.read()
        refusal = msgspec.json.decode(body, type=Refusal)
    except (aiohttp.ClientError, OSError, msgspec.DecodeError):
        refusal = Refusal(message=f"{url} answered HTTP {response.status}")
    if 400 <= response.status < 500 and response.status != 429:
        raise RequestError(refusal.message, field=refusal.field, code=refusal.code, status=response.status)
    raise Overloaded(refusal.message, retry_after_s=refusal.retry_after_s)
