"""How long this process waits for a word of another one. That it did nothing itself just then is no silence."""

import asyncio
from types import TracebackType

LATE_S = 0.2
"""A timer that goes off so late tells of this process, not of the peer."""


class HeardWithin:
    """`asyncio.timeout(seconds)`; but when that is noticed late, what has come meanwhile may still be read."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._wait(self._seconds)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises TimeoutError when it was too long."""
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        self._timer = self._loop.call_at(until, self._look, until)

    def _look(self, until: float) -> None:
        if self._loop.time() - until > LATE_S:
            self._wait(LATE_S)
        else:
            self._timeout.reschedule(until)  # at once
