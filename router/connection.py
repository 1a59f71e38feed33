"""A client's connection: it is cut when the client takes nothing for long, since nobody would read what waits for it,
and it is written to once per turn of the event loop."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STALL_S = 8.0
"""A client with a full connection that accepts no byte for so long is cut off."""

_CORKED_BYTES = 2**16
"""So much is written at once, so that the transport can say that it is enough."""
_IS_FREE = "penstock.is_free"

log = logging.getLogger(__name__)


def is_free_of(scope: Scope) -> Callable[[], bool]:
    """Whether the connection of this request takes data at once; never, on another server than ours."""
    found: Callable[[], bool] = scope.get("extensions", {}).get(_IS_FREE, lambda: False)
    return found


class ClientConnection(HttpToolsProtocol):
    """Uvicorn's, watched while more waits to be sent than it lets wait. `is_free_of(scope)` says that nothing does."""

    _check: asyncio.TimerHandle | None = None
    _left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", Corked(cast("asyncio.Transport", transport), self.loop)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("Scope", self.scope)["extensions"] = {_IS_FREE: self._is_free}

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _is_free(self) -> bool:
        return not self.flow.write_paused

    def _watch(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._check = self.loop.call_later(STALL_S, self._look)

    def _unwatch(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look(self) -> None:
        """Nothing is added while writing is paused, so that any progress shows."""
        if self.transport.get_write_buffer_size() < self._left:
            self._watch()
            return
        log.warning("a client accepted nothing for %g s: its connection is cut", STALL_S)
        self._check = None
        self.transport.abort()


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
        if self._num_bytes >= _CORKED_BYTES:
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
