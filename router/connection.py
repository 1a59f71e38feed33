"""A client's connection, which is cut when the client takes nothing for long: nobody would read what waits for it."""

import asyncio
import logging
import socket
import struct

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STALL_S = 8.0
"""A client with a full connection that accepts no byte for so long is cut off."""

log = logging.getLogger(__name__)


class ClientConnection(HttpToolsProtocol):
    """Uvicorn's, watched while more waits to be sent than it lets wait."""

    _check: asyncio.TimerHandle | None = None
    _left = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

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
        # With a reset: to a client of HTTP/1.0, and a proxy that speaks it, a mere close is the good end of an answer.
        no_linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        self.transport.abort()
