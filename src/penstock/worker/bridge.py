"""The asyncio side of a worker's pipe: requests go to the engine process, frames come back to their streams.

Knows messages and frames; knows no HTTP and nothing of how the engine computes.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from msgspec import Raw, Struct, msgpack
from msgspec.structs import replace

from penstock.engine.messages import (
    Beat,
    Cancel,
    Generate,
    Lookup,
    Prefill,
    Snapshot,
    Started,
    Stats,
    StepOutputs,
    decode_from_engine,
    encode,
)
from penstock.errors import DeadlineExceeded, PenstockError
from penstock.protocol import SILENT_S, STUCK_FACTOR, STUCK_S, Heartbeat, Load
from penstock.telemetry.trace import NO_TRACE, Trace
from penstock.worker.events import Subscription
from penstock.worker.pipe import EnginePipe
from penstock.worker.stream import Stream


class EngineBridge:
    """The engine as the front sees it: open streams, latest load and statistics, signs of life."""

    def __init__(self, started: Started, *, max_behind: int, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called when the engine's end of the pipe closes."""
        self.started = started
        self.load = Load(free_blocks=started.peer.num_blocks, num_blocks=started.peer.num_blocks)
        self.stats = Stats()
        self.idle = asyncio.Event()
        """Set while no stream is open."""
        self.idle.set()
        self.on_lost = on_lost
        self._max_behind = max_behind
        self._loop = asyncio.get_running_loop()
        self._pipe = EnginePipe(self._receive, lambda: self.on_lost())
        self._outgoing: list[Raw] = []
        self._streams: dict[str, Stream] = {}
        self._subscriptions: set[Subscription] = set()
        self._count = itertools.count(1)
        self._beat = Heartbeat(0, 0.0, 0.0)
        self._beat_at = self._loop.time()

    async def attach(self, connection: Connection) -> None:
        """Starts reading and writing."""
        await self._pipe.attach(connection)

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def trouble(self) -> str | None:
        """Why the engine must be taken for dead or stuck, or None while it is well."""
        silent_s = self._loop.time() - self._beat_at
        if silent_s > SILENT_S:
            return f"the engine process was silent for {silent_s:.1f} s"
        limit_s = max(STUCK_S, STUCK_FACTOR * self._beat.predicted_s)
        if self._beat.step_s > limit_s:
            return f"the engine is stuck: {self._beat.step_s:.1f} s in step {self._beat.step} (limit {limit_s:.1f} s)"
        return None

    def send(self, message: Struct) -> None:
        """Queues a message; all that one tick of the event loop queues go as one batch.

        Raises OverflowError for an integer that does not fit 64 bits, here and not for the whole batch.
        """
        data = Raw(encode(message))
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    @contextmanager
    def open(self, message: Generate | Prefill | Lookup, timeout_s: float, trace: Trace = NO_TRACE) -> Iterator[Stream]:
        """Submits a request and yields its stream; leaving cancels it in the engine unless it has ended there.

        The engine knows it by an id of its own, so that a request that comes back under the same `request_id` never
        meets frames of its former life.
        """
        submission, request_id = _renamed(message, next(self._count), trace.is_recording)
        num_samples = 1 if isinstance(message, Lookup) else len(message.request.samples)
        self.send(submission)
        stream = Stream(request_id, self._max_behind * num_samples, lambda: self.send(Cancel(request_id)), trace)
        self._streams[request_id] = stream
        self.idle.clear()
        stream.expire(timeout_s, DeadlineExceeded(f"not finished within the deadline of {timeout_s:g} s"))
        try:
            yield stream
        finally:
            stream.close()
            del self._streams[request_id]
            if not self._streams:
                self.idle.set()

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """A subscription to the engine's events; its first frame is a snapshot."""
        subscription = Subscription(self.started.peer.generation)
        self._subscriptions.add(subscription)
        self.send(Snapshot())
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def end_all(self, error: PenstockError) -> None:
        """Ends every stream with `error`, and every subscription."""
        for stream in self._streams.values():
            stream.fail(error)
        for subscription in self._subscriptions:
            subscription.close()

    def _flush(self) -> None:
        batch, self._outgoing = tuple(self._outgoing), []
        self._pipe.send(msgpack.encode(batch))

    def _receive(self, data: bytes) -> None:
        message = decode_from_engine(data)
        if isinstance(message, StepOutputs):
            self._take_outputs(message)
        elif isinstance(message, Beat):
            self._take_beat(message)

    def _take_outputs(self, step: StepOutputs) -> None:
        for span in step.spans:
            if (stream := self._streams.get(span.request_id)) is not None:
                stream.trace.record(span.name, span.seconds, span.ago_s, count=span.count)
        for output in step.outputs:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.put(output.frame)
        for wanted in step.wanted:
            if (stream := self._streams.get(wanted.request_id)) is not None:
                stream.want(wanted.hashes)
        for request_id in step.released:
            if (stream := self._streams.get(request_id)) is not None:
                stream.on_release()
        self.load = step.load or (step.events and step.events.load) or self.load
        self.stats = step.stats or self.stats
        if step.events is not None:
            for subscription in self._subscriptions:
                subscription.put(step.events, self.load)

    def _take_beat(self, beat: Beat) -> None:
        self._beat_at = self._loop.time()
        self._beat = Heartbeat(beat.step, beat.step_s, beat.predicted_s)
        for stream in self._streams.values():
            stream.beat(self._beat)
        for subscription in self._subscriptions:
            subscription.beat(self.load)


def _renamed(message: Generate | Prefill | Lookup, number: int, traced: bool) -> tuple[Struct, str]:
    """The message under a process-unique request id, and that id."""
    if isinstance(message, Lookup):
        request_id = f"{message.request_id}#{number}"
        return replace(message, request_id=request_id), request_id
    request_id = f"{message.request.request_id}#{number}"
    return replace(message, request=replace(message.request, request_id=request_id), traced=traced), request_id
