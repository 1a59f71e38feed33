"""One subscriber of `/events`: a snapshot first, then every change, numbered without gaps."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from msgspec.structs import replace

from penstock.protocol import Events, Load

MAX_FRAMES_BEHIND = 4096


class Subscription:
    """Frames for one subscriber; they begin with the snapshot that its subscription asked the engine for.

    The front numbers them itself: the pipe neither loses nor reorders, so a gap can only mean a slow subscriber,
    whose stream simply ends; it subscribes again.
    """

    def __init__(self, generation: str) -> None:
        self._generation = generation
        self._frames: deque[Events] = deque()
        self._wake = asyncio.Event()
        self._sequence = 0
        self._has_snapshot = False
        """Whether it is there in all its parts."""
        self._closed = False

    def put(self, events: Events, load: Load | None) -> None:
        """Queues a frame of the engine unless it is from before, or of another subscriber's snapshot; `load` is the
        latest known."""
        is_ours = events.snapshot != self._has_snapshot and (self._sequence > 0 or events.part == 0)
        if not is_ours:
            return
        self._has_snapshot = not events.more
        self._queue(replace(events, sequence=self._sequence, load=events.load or load))

    def beat(self, load: Load | None) -> None:
        """Queues the load alone, so that the stream is never silent."""
        if self._sequence > 0:
            self._queue(Events(generation=self._generation, sequence=self._sequence, load=load))

    def close(self) -> None:
        """Ends the stream after what waits."""
        self._closed = True
        self._wake.set()

    async def batches(self) -> AsyncIterator[list[Events]]:
        """Everything that waits, whenever something does, until closed."""
        while not (self._closed and not self._frames):
            await self._wake.wait()
            self._wake.clear()
            if self._frames:
                batch = list(self._frames)
                self._frames.clear()
                yield batch

    def _queue(self, events: Events) -> None:
        if self._closed:
            return
        if len(self._frames) >= MAX_FRAMES_BEHIND:
            self._frames.clear()
            self.close()
            return
        self._frames.append(events)
        self._sequence += 1
        self._wake.set()
