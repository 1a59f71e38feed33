"""Requests for the fake engine, and what tests do with the streams that answer them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from msgspec import Struct

from penstock.hop import MAX_LINE_BYTES, Hop, new_session, open_hop
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams

T = TypeVar("T")

_numbers = itertools.count()


def request(
    salt: str = "", *, max_tokens: int = 5, prompt: tuple[int, ...] = (1,) * 10, **fields: Any
) -> GenerateRequest:
    """A request whose `salt` chooses the fake engine's behaviour."""
    fields.setdefault("samples", (Sample(0, 1),))
    sampling = SamplingParams(max_tokens=max_tokens)
    return GenerateRequest(
        request_id=f"request-{next(_numbers)}", prompt=prompt, sampling=sampling, salt=salt, **fields
    )


@asynccontextmanager
async def call(url: str, body: Struct, *, max_line_bytes: int = MAX_LINE_BYTES) -> AsyncIterator[Hop]:
    """One streaming call, closed at the end."""
    async with new_session() as session, open_hop(session, url, body, max_line_bytes=max_line_bytes) as hop:
        yield hop


async def read_to_end(hop: Hop) -> list[Any]:
    """All frames of a stream up to Done or Error."""
    frames = []
    async for frame in hop.frames():
        frames.append(frame)
        if isinstance(frame, Done | Error):
            break
    return frames


def answer(url: str, body: Struct) -> list[Any]:
    """All frames of one whole call."""

    return run(lambda: read_all(url, body))


async def read_all(url: str, body: Struct) -> list[Any]:
    """All frames of one whole call."""
    async with call(url, body) as hop:
        return await read_to_end(hop)


def fetch(method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of a plain HTTP call."""

    async def ask() -> tuple[int, bytes]:
        async with aiohttp.ClientSession() as session, session.request(method, url, data=body) as response:
            return response.status, await response.read()

    return run(ask)


def run(main: Callable[[], Awaitable[T]], within_s: float = 20.0) -> T:
    """Runs `main` in an event loop of its own, with a deadline."""

    async def limited() -> T:
        async with asyncio.timeout(within_s):
            return await main()

    return asyncio.run(limited())
