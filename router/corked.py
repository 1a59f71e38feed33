"""Fewer system calls per answer: what one turn of the event loop writes to a client leaves in one piece."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Scope

_MOST_BYTES = 2**16
"""So much is written at once, so that the transport can say that it is enough."""
_IS_FREE = "penstock.is_free"


def is_free_of(scope: Scope) -> Callable[[], bool]:
    """Whether the connection of this request takes data without a wait; never, on another server than ours."""
    found: Callable[[], bool] = scope.get("extensions", {}).get(_IS_FREE, lambda: False)
    return found


def offer_is_free(scope: Scope, is_free: Callable[[], bool]) -> None:
    """What `is_free_of(scope)` returns from now on."""
    scope["extensions"] = {_IS_FREE: is_free}


class Corked:
    """A transport that gathers what one turn of the event loop writes: an answer's head, its events and its end.

    Uvloop makes a system call of each write, which costs some 15 us, over loopback also the peer's (measured).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._num_bytes += len(data)
        if self._num_bytes >= _MOST_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._waiting.clear()
        self._num_bytes = 0
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + self._num_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._waiting and not self._transport.is_closing():
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()
        self._num_bytes = 0
