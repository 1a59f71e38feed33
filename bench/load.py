"""A client that costs little: raw HTTP/1.1 over kept connections, streams read to their end, times of each.

It takes a whole stream for granted only with its last event and its last chunk; anything else ends the benchmark.
"""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

_TOKEN = re.compile(rb'"(?:content|text)":\s*"[^"]')
_LAST = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds from its first byte sent."""

    first_token_s: float
    total_s: float


class Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._done: asyncio.Future[Timing] | None = None
        self._began = 0.0
        self._first_at = 0.0
        self._num_tokens = 0

    async def ask(self, request: bytes, num_tokens: int) -> Timing:
        """Raises SystemExit unless a good stream of `num_tokens` tokens comes back."""
        assert self._transport is not None
        self._received.clear()
        self._num_tokens = num_tokens
        self._first_at = 0.0
        self._done = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        assert self._transport is not None
        quick_ack(self._transport)
        received = self._received
        received += data
        if not self._first_at and _TOKEN.search(received):
            self._first_at = now
        if not received.endswith(b"0\r\n\r\n") and not received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
            return
        assert self._done is not None
        if not received.startswith(b"HTTP/1.1 200") or _LAST not in received or not self._is_whole():
            self._fail(f"a gateway answered:\n{bytes(received[:2000]).decode(errors='replace')}")
        elif not self._done.done():
            self._done.set_result(Timing(self._first_at - self._began, now - self._began))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"a gateway closed the connection: {error}")

    def _is_whole(self) -> bool:
        return len(_TOKEN.findall(self._received)) == self._num_tokens

    def _fail(self, message: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(SystemExit(message))


def quick_ack(transport: asyncio.Transport) -> None:
    """Acknowledges at once: else a peer that leaves Nagle's algorithm on waits 40 ms for each acknowledgement."""
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def one_by_one(port: int, make: Callable[[], bytes], count: int, num_tokens: int) -> list[Timing]:
    """`count` requests, one at a time."""
    connection = await connect(port)
    try:
        return [await connection.ask(make(), num_tokens) for _ in range(count)]
    finally:
        connection.close()


async def at_once(
    port: int, make: Callable[[], bytes], num_tokens: int, *, in_flight: int, seconds: float, most: int = 10**9
) -> tuple[int, float]:
    """As many requests as fit into `seconds`, `in_flight` at any time. Returns (requests, seconds)."""
    connections = [await connect(port) for _ in range(in_flight)]
    began = time.perf_counter()
    until = began + seconds
    count = 0

    async def run(connection: Connection) -> None:
        nonlocal count
        while time.perf_counter() < until and count < most:
            count += 1
            await connection.ask(make(), num_tokens)

    try:
        await asyncio.gather(*(run(connection) for connection in connections))
        return count, time.perf_counter() - began
    finally:
        for connection in connections:
            connection.close()
