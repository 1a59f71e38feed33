"""A decode worker without a model: real HTTP, the real wire types, scripted behaviour.

Its "model" is a function of (sample index, position), so a stream that was resumed elsewhere can be compared with one
that was never broken. Each request takes the next script of `scripts`, or `answer` when none is left.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import msgspec
from aiohttp import web

from penstock.hop import Readiness, Refusal
from penstock.protocol import (
    HEARTBEAT_S,
    Accepted,
    Done,
    Error,
    Events,
    Finished,
    GenerateRequest,
    Heartbeat,
    Sample,
    StoredBlock,
    TokenLogprob,
    Tokens,
    encode_line,
)
from tests.router.local_server import LocalServer

_TRACE_HEADERS = ("traceparent", "tracestate")


class Stream:
    """What a script writes to."""

    def __init__(self, worker: "FakeWorker", http: web.Request, request: GenerateRequest) -> None:
        self.worker = worker
        self.request = request
        self._http = http
        self._response = web.StreamResponse()

    async def accept(self) -> None:
        await self._response.prepare(self._http)
        await self.send(Accepted(self.worker.generation))

    async def send(self, frame: msgspec.Struct) -> None:
        await self._response.write(encode_line(frame))

    async def raw(self, data: bytes) -> None:
        await self._response.write(data)

    async def tokens(self, sample: Sample, start: int, stop: int) -> None:
        """Output positions [start, stop) of one sample in one frame."""
        ids = self.worker.output(sample.index)[start:stop]
        logprobs = ()
        num_top = self.request.sampling.logprobs
        if num_top is not None:
            logprobs = tuple(TokenLogprob(-0.5, tuple((token + i, -0.5 - i) for i in range(num_top))) for token in ids)
        cached = self.worker.cached_tokens if start == len(sample.output) else None
        await self.send(Tokens(sample.index, start, tuple(ids), logprobs, cached))

    async def finish(self) -> None:
        """All frames from where the request stands to its good end, one token per frame, samples in turns."""
        ends = {sample.index: self.end_of(sample) for sample in self.request.samples}
        for position in range(max(end for end, _ in ends.values())):
            for sample in self.request.samples:
                end, reason = ends[sample.index]
                if len(sample.output) <= position < end:
                    await self.tokens(sample, position, position + 1)
                    await self.worker.token_gate(self)
                if position == end - 1:
                    await self.send(Finished(sample.index, reason))
        await self.send(Done(cached_tokens=self.worker.cached_tokens))
        await self._response.write_eof()

    def end_of(self, sample: Sample) -> tuple[int, str]:
        """(Number of output tokens, finish reason) of one sample."""
        ids, limit = self.worker.output(sample.index), self.request.sampling.max_tokens
        return (len(ids), "stop") if len(ids) <= limit else (limit, "length")

    def cut(self) -> None:
        """As if the process was killed."""
        assert self._http.transport is not None
        self._http.transport.abort()


Script: TypeAlias = Callable[[Stream], Awaitable[web.StreamResponse | None]]

EventScript: TypeAlias = Callable[["FakeWorker", web.StreamResponse], Awaitable[None]]
"""What is written to one subscriber of /events."""


class FakeWorker(LocalServer):
    """One worker on a free port of this machine. Create and close it on its event loop."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        """`texts` are the outputs of samples 0, 1, ...; they repeat for more samples."""
        self.texts = texts
        self.scripts: deque[Script] = deque()
        self.requests: list[GenerateRequest] = []
        self.trace_headers: list[dict[str, str]] = []
        self.generation = "g1"
        self.ready = True
        self.nonsense = b""
        """What it answers to /ready instead."""
        self.max_context_tokens: int | None = None
        self.max_samples: int | None = None
        self.model = self.weights = ""
        self.cached_tokens = 3
        self.stored: list[StoredBlock] = []
        """Its prefix cache, of blocks of 2 tokens, as new subscribers of /events hear of it."""
        self.evictions = 0
        self.event_scripts: deque[EventScript] = deque()
        """What subscribers get, in turn; then `quiet_events`."""
        self.subscriptions = 0
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        """When set to an Event, streams wait for it after every token, with heartbeats."""

    def output(self, sample: int) -> Sequence[int]:
        return self.texts[sample % len(self.texts)]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/events", self._events)
        return app

    def snapshot(self) -> Events:
        """The first frame of a subscription."""
        first = Events(generation=self.generation, sequence=0, snapshot=True, block_size=2, evictions=self.evictions)
        return msgspec.structs.replace(first, stored=tuple(self.stored))

    async def token_gate(self, stream: Stream) -> None:
        while self.gate is not None and not self.gate.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self.gate.wait()
            await stream.send(Heartbeat(step=1, step_s=0.0, predicted_s=0.0))

    async def _ready(self, _: web.Request) -> web.Response:
        if not self.ready:
            return web.Response(status=503)
        if self.nonsense:
            return web.Response(body=self.nonsense)
        said = Readiness(True, self.max_context_tokens, self.max_samples, model=self.model, weights=self.weights)
        return web.Response(body=msgspec.json.encode(said))

    async def _events(self, http: web.Request) -> web.StreamResponse:
        self.subscriptions += 1
        response = web.StreamResponse()
        await response.prepare(http)
        script = self.event_scripts.popleft() if self.event_scripts else quiet_events
        with suppress(ConnectionError):
            await script(self, response)
        return response

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        request = msgspec.json.decode(await http.read(), type=GenerateRequest)
        self.requests.append(request)
        self.trace_headers.append({name: http.headers[name] for name in _TRACE_HEADERS if name in http.headers})
        stream = Stream(self, http, request)
        script = self.scripts.popleft() if self.scripts else answer
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await script(stream) or stream._response
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def quiet_events(worker: FakeWorker, response: web.StreamResponse) -> None:
    """A snapshot, and then nothing but heartbeats."""
    await tell(response, worker.snapshot())
    for sequence in itertools.count(1):
        await asyncio.sleep(HEARTBEAT_S)
        await tell(response, Events(generation=worker.generation, sequence=sequence))


async def tell(response: web.StreamResponse, frame: Events) -> None:
    await response.write(encode_line(frame))


async def answer(stream: Stream) -> None:
    """The good case."""
    await stream.accept()
    await stream.finish()


async def burst(stream: Stream) -> None:
    """The good case, a token per frame, all in one piece."""
    await stream.accept()
    lines = []
    for sample in stream.request.samples:
        end, reason = stream.end_of(sample)
        ids = stream.worker.output(sample.index)
        lines += [Tokens(sample.index, at, (ids[at],)) for at in range(len(sample.output), end)]
        lines += [Finished(sample.index, reason)]
    await stream.raw(b"".join(map(encode_line, [*lines, Done()])))


def die_after(num_tokens: int) -> Script:
    """Killed after so many tokens of each sample."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        stream.cut()

    return script


def end_after(num_tokens: int) -> Script:
    """Closes politely, but without a last frame."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)

    return script


def freeze_after(num_tokens: int) -> Script:
    """Stopped: the connection stays, but nothing comes any more."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        await asyncio.Event().wait()

    return script


def stick_after(num_tokens: int) -> Script:
    """The process lives, but its engine hangs in one step."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        await stream.send(Heartbeat(step=7, step_s=60.0, predicted_s=0.1))
        await asyncio.Event().wait()

    return script


def fail_after(num_tokens: int, code: str) -> Script:
    """Ends with an error frame."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        await stream.send(Error(code=code, message=f"scripted {code}"))

    return script


def garbage_after(num_tokens: int, line: bytes = b'{"type":"tokens","sample":"zero"}') -> Script:
    """Sends a line that is no frame, or none that can be true."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        await stream.raw(line + b"\n")

    return script


def pad(num_bytes: int) -> Script:
    """Begins with a heartbeat of more than so many bytes; then all is as it should be."""

    async def script(stream: Stream) -> None:
        await stream.accept()
        await stream.raw(b" " * num_bytes + encode_line(Heartbeat(1, 0.0, 1.0)))
        await stream.finish()

    return script


def gap_after(num_tokens: int) -> Script:
    """Leaves out a position."""

    async def script(stream: Stream) -> None:
        await _begin(stream, num_tokens)
        sample = stream.request.samples[0]
        start = len(sample.output) + num_tokens + 1
        await stream.tokens(sample, start, start + 1)

    return script


async def repeat_positions(stream: Stream) -> None:
    """Sends each position three times, in growing frames."""
    await stream.accept()
    for sample in stream.request.samples:
        end, reason = stream.end_of(sample)
        for position in range(len(sample.output), end):
            await stream.tokens(sample, max(0, position - 2), position + 1)
        await stream.send(Finished(sample.index, reason))
    await stream.send(Done())


async def busy(_: Stream) -> web.Response:
    """Full."""
    refusal = Refusal("no block is free", code="overloaded", retry_after_s=7)
    return web.Response(status=503, body=msgspec.json.encode(refusal))


def refuse(field: str) -> Script:
    """Finds a fault with this field of the request."""

    async def script(_: Stream) -> web.Response:
        refusal = Refusal("the worker does not like it", code="odd", field=field)
        return web.Response(status=400, body=msgspec.json.encode(refusal))

    return script


async def _begin(stream: Stream, num_tokens: int) -> None:
    await stream.accept()
    for sample in stream.request.samples:
        if num_tokens:
            await stream.tokens(sample, len(sample.output), len(sample.output) + num_tokens)
