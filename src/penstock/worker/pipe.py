"""The front's end of the pipe to its engine, without blocking the event loop in either direction.

Speaks the framing of `multiprocessing.connection.Connection.send_bytes`, which the engine's blocking end uses: a
big-endian int32 length, or -1 and a uint64 length for messages of 2 GiB and more, then the bytes.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import cast

_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!Q")
_LONGEST_SHORT = 2**31 - 1


class EnginePipe(asyncio.Protocol):
    """Calls `on_message` for every message and `on_closed` once, when the other end is gone."""

    def __init__(self, on_message: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    async def attach(self, connection: Connection) -> None:
        """Takes over the open `connection` (which is closed here: its descriptor lives on in the event loop)."""
        end = socket.socket(fileno=socket.dup(connection.fileno()))
        connection.close()
        end.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=end)

    def send(self, data: bytes) -> None:
        """Queues one message; the event loop writes it as the engine reads."""
        assert self._transport is not None
        header = _SHORT.pack(len(data)) if len(data) <= _LONGEST_SHORT else _SHORT.pack(-1) + _LONG.pack(len(data))
        self._transport.write(header + data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while (message := self._next_message(start)) is not None:
            begin, start = message
            self._on_message(bytes(self._buffer[begin:start]))
        del self._buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the cause does not matter
        self._on_closed()

    def _next_message(self, start: int) -> tuple[int, int] | None:
        """Bounds of the payload of the message at `start`, or None while it is not complete."""
        begin = start + _SHORT.size
        if len(self._buffer) < begin:
            return None
        (length,) = _SHORT.unpack_from(self._buffer, start)
        if length == -1:
            if len(self._buffer) < begin + _LONG.size:
                return None
            (length,) = _LONG.unpack_from(self._buffer, begin)
            begin += _LONG.size
        return (begin, begin + length) if len(self._buffer) >= begin + length else None
