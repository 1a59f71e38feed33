"""What a client has not taken yet of its stream, so that the worker's stream is read at the worker's pace.

Else a client that reads slowly would stop the worker's writes, the worker would cut a reader that accepts nothing, and
the router would take the worker for lost.
"""

import asyncio
from collections.abc import Callable

from starlette.types import Message, Send

from penstock.errors import PenstockError

MOST_BEHIND_BYTES = 16 * 2**20
"""A client that leaves more waiting is cut off: about 80,000 tokens without log-probabilities."""
_TURN_BYTES = 2**16
"""From so many waiting bytes on, each event lets the writer have its turn."""


class SlowClient(PenstockError):
    """The client reads more slowly than its answer comes, and is too far behind."""


class Outbox:
    """The events of one stream on their way to its client."""

    def __init__(self, send: Send, is_free: Callable[[], bool] = lambda: False) -> None:
        """`is_free` says that the connection takes data now, so that `send` will not wait."""
        self._send = send
        self._is_free = is_free
        self._waiting: list[bytes] = []
        self._num_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._start: Message | None = None
        self.num_events = 0
        """Given to the client so far, remarks too."""

    def start(self, message: Message) -> None:
        """The response's start, which goes before whatever comes first; nothing at all (`put(b"")`) will do."""
        self._start = message

    async def put(self, data: bytes) -> None:
        """Returns without waiting for the client. Raises SlowClient when too much waits for it."""
        if self._writer is None and self._is_free():  # nearly always, and it saves a task per event
            self.num_events += 1
            await self._send_start()
            if data:
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
            return
        self._add(data)
        if self._num_bytes > _TURN_BYTES:
            await asyncio.sleep(0)
        if self._num_bytes > MOST_BEHIND_BYTES:
            raise SlowClient(f"the client is more than {MOST_BEHIND_BYTES} bytes behind its stream")

    def remark(self, data: bytes) -> None:
        """Put only where nothing waits: a client that does not read needs no sign of life."""
        if not self._waiting:
            self._add(data)

    async def flush(self) -> None:
        """Returns when the connection has taken everything."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    def close(self) -> None:
        """Nothing more is written."""
        if self._writer is not None:
            self._writer.cancel()

    def _add(self, data: bytes) -> None:
        self._waiting.append(data)
        self._num_bytes += len(data)
        self.num_events += 1
        self._write_soon()

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _send_start(self) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)

    async def _write(self) -> None:
        await self._send_start()
        while self._waiting:
            body = b"".join(self._waiting)
            self._waiting.clear()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._num_bytes -= len(body)
        self._writer = None
