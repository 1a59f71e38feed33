"""A TCP proxy in front of one worker that knows at which step of the protocol each call is, and can break the wire.

It reads along: a call's first bytes, and the frames of its answer. When the n-th call reaches a step, `Trap.fire` runs
before anything else is forwarded, so a fault hits exactly there.
"""

import asyncio
import enum
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

_LINGER = struct.pack("ii", 1, 0)
"""Closing sends a reset."""


class Step(enum.Enum):
    """What a call has just reached."""

    REQUEST = "request"
    """Nothing of it has been forwarded yet."""
    ACCEPTED = "accepted"
    TICKET = "ticket"
    """A ticket that is not the last."""
    LAST = "last"
    """The last ticket."""
    RELEASED = "released"
    """The caller closed the call after its last ticket."""
    TOKENS = "tokens"


@dataclass
class Trap:
    """Fires once, when a step is reached for the `count`-th time.

    `before`: the frame that makes the step is forwarded after `fire`, else before it.
    """

    step: Step
    count: int
    fire: Callable[[], None]
    before: bool = False

    def reached(self, step: Step, *, before: bool) -> bool:
        if step is not self.step or before is not self.before:
            return False
        self.count -= 1
        if self.count == 0:
            self.fire()
        return self.count == 0


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 90.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Proxy:
    """Listens on loopback. All methods but `start` and `stop` must be called on its loop."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.trap: Trap | None = None
        self.seen: Counter[Step] = Counter()
        self.cut_after: int | None = None
        """Bytes of an answer after which a connection ends; `cut_politely` chooses how."""
        self.cut_politely = False
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        self._server.close()
        self.heal()
        self.cut()
        await asyncio.gather(*self._serving)

    @property
    def num_calls(self) -> int:
        """Open connections that carry a call."""
        return sum(connection.is_call for connection in self._connections)

    def cut(self) -> None:
        """Resets every connection, on both sides."""
        for connection in list(self._connections):
            connection.cut()

    def partition(self) -> None:
        """From now on nothing is forwarded in either direction, and nothing is closed."""
        self._open.clear()

    def heal(self) -> None:
        """What was held back flows again."""
        self._open.set()
        for connection in self._connections:
            connection.release()

    async def gate(self) -> None:
        await self._open.wait()

    def reached(self, step: Step, *, before: bool) -> bool:
        """True when a trap has fired."""
        if before:
            self.seen[step] += 1
        return self.trap is not None and self.trap.reached(step, before=before)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(connection)
        self._serving.add(task)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._serving.discard(task)


@contextmanager
def proxied() -> Iterator[tuple[LoopThread, dict[str, Proxy], Callable[[str, str], str]]]:
    """A loop, the proxies on it by name, and the function that makes one: Deployment's `reached_at`."""
    loop = LoopThread()
    proxies: dict[str, Proxy] = {}

    def reached_at(name: str, url: str) -> str:
        proxies[name] = loop.run(Proxy(url).start())
        return proxies[name].url

    try:
        yield loop, proxies, reached_at
    finally:
        for proxy in proxies.values():
            loop.run(proxy.stop())
        loop.close()


class _Connection:
    """One connection of a caller and its twin to the worker."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_call = False
        self._proxy = proxy
        self._caller = reader, writer
        self._held: bytearray | None = None
        self._line = b""
        self._num_answered = 0
        self._was_last = False
        self._worker: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self) -> None:
        """Until either side closes."""
        try:
            await self._proxy.gate()
            target = self._proxy.target
            self._worker = await asyncio.open_connection(target.hostname, target.port)
            pumps = [asyncio.ensure_future(self._pump_call()), asyncio.ensure_future(self._pump_answer())]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await self._proxy.gate()  # a partition hides also that a side has closed
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            self.cut()
        finally:
            for _, writer in self._sides():
                writer.close()

    def cut(self) -> None:
        """Resets both sides."""
        for _, writer in self._sides():
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            writer.transport.abort()

    def release(self) -> None:
        """Forwards what was held back since a trap fired here."""
        held, self._held = self._held, None
        if held:
            self._caller[1].write(held)

    def _sides(self) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return [self._caller, *([self._worker] if self._worker else [])]

    async def _pump_call(self) -> None:
        assert self._worker is not None
        with suppress(OSError):
            while data := await self._caller[0].read(1 << 16):
                if data.startswith((b"POST /prefill", b"POST /generate", b"POST /v1")):
                    self.is_call, self._was_last = True, False
                    self._proxy.reached(Step.REQUEST, before=True)
                await self._proxy.gate()
                self._worker[1].write(data)
                await self._worker[1].drain()
        if self._was_last:
            self._proxy.reached(Step.RELEASED, before=True)

    async def _pump_answer(self) -> None:
        assert self._worker is not None
        with suppress(OSError):
            while data := await self._worker[0].read(1 << 16):
                if self.is_call:
                    for part in data.splitlines(keepends=True):
                        await self._forward(part)
                else:
                    await self._send(data)

    async def _forward(self, part: bytes) -> None:
        """Part of a line, or its end; a frame is complete, and so arrives, with the end of its line."""
        self._line += part
        step = None
        if part.endswith(b"\n"):
            step = _step_of(self._line)
            if self._line == b"0\r\n" or self._line.startswith(b"HTTP/1.1 503"):
                self.is_call = False  # the answer has ended; the connection waits in a pool
            self._line = b""
        self._was_last |= step is Step.LAST
        if step is not None:
            self._proxy.reached(step, before=True)
        await self._send(part)
        if step is not None and self._proxy.reached(step, before=False):
            self._held = self._held or bytearray()  # the worker said no more before the fault

    async def _send(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            return
        await self._proxy.gate()
        writer = self._caller[1]
        limit = self._proxy.cut_after
        if limit is not None and self._num_answered + len(data) >= limit:
            writer.write(data[: limit - self._num_answered])
            if self._proxy.cut_politely:
                await writer.drain()
            else:
                self.cut()
            raise ConnectionError("cut as asked for")
        self._num_answered += len(data)
        writer.write(data)
        await writer.drain()


def _step_of(line: bytes) -> Step | None:
    if line.startswith(b'{"type":"accepted"'):
        return Step.ACCEPTED
    if line.startswith(b'{"type":"ticket"'):
        return Step.LAST if b'"last":true' in line else Step.TICKET
    if line.startswith(b'{"type":"tokens"'):
        return Step.TOKENS
    return None
