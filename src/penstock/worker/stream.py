"""The frames of one open request on their way from the engine to its caller: bounded, ended exactly once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from penstock.errors import Overloaded, PenstockError
from penstock.protocol import Done, Error, Finished, Heartbeat, Ticket, Tokens, error_frame
from penstock.telemetry.trace import NO_TRACE, Trace

StreamFrame: TypeAlias = Tokens | Finished | Done | Error | Ticket | Heartbeat


class Stream:
    """Frames of one request, in order, for one reader.

    Heartbeats do not queue: only the latest waits, and only while no other frame does. A reader that falls more than
    `max_behind` frames behind loses what waits and reads an Error as its last frame, so memory stays bounded.
    """

    def __init__(self, request_id: str, max_behind: int, cancel: Callable[[], None], trace: Trace = NO_TRACE) -> None:
        """`cancel` tells the engine to drop the request; called when the front ends the stream on its own."""
        self.id = request_id
        self.trace = trace
        self.ended = False
        """The last frame (Done or Error) is queued or was read."""
        self.on_release: Callable[[], object] = lambda: None
        """Called when nothing more is needed of the worker that this request reads from."""
        self.wanted: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()
        """The hashes to ask the request's source for, once the engine knows them."""
        self._max_behind = max_behind
        self._cancel = cancel
        self._frames: deque[StreamFrame] = deque()
        self._beat: Heartbeat | None = None
        self._wake = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None

    def put(self, frame: StreamFrame) -> None:
        """Queues a frame from the engine."""
        if self.ended:
            return
        if len(self._frames) >= self._max_behind:
            self._frames.clear()
            self.fail(Overloaded(f"the caller fell {self._max_behind} frames behind"))
            return
        self._frames.append(frame)
        self.ended = isinstance(frame, Done | Error)
        self._wake.set()

    def want(self, hashes: tuple[bytes, ...]) -> None:
        """The engine asks for blocks of the request's source."""
        if not self.wanted.done():  # cancelled along with its reader
            self.wanted.set_result(hashes)

    def beat(self, beat: Heartbeat) -> None:
        """Replaces the heartbeat that waits to be read."""
        self._beat = beat
        self._wake.set()

    def fail(self, error: PenstockError) -> None:
        """Ends the stream with `error` on the front's own decision, and cancels the request in the engine."""
        if self.ended:
            return
        self._frames.append(error_frame(error))
        self.ended = True
        self._cancel()
        self._wake.set()

    def expire(self, after_s: float, error: PenstockError) -> None:
        """Fails the stream with `error` after so many seconds; a second call replaces the first."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(after_s, self.fail, error)

    def close(self) -> None:
        """The reader is gone: cancels the request unless it has ended."""
        if self._expiry is not None:
            self._expiry.cancel()
        if not self.ended:
            self.ended = True
            self._cancel()

    async def batches(self) -> AsyncIterator[list[StreamFrame]]:
        """Everything that waits, whenever something does, up to and including the last frame."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._frames:
                batch = list(self._frames)
                self._frames.clear()
            elif self._beat is not None:
                batch = [self._beat]
            else:
                continue
            self._beat = None
            yield batch
            if isinstance(batch[-1], Done | Error):
                return
