"""What the routes of a worker share: its configuration, its engine, and whether it takes new requests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from starlette.requests import Request

from penstock.engine.messages import Generate, Lookup, Prefill
from penstock.errors import Overloaded
from penstock.protocol import Accepted
from penstock.telemetry.logs import requests_log
from penstock.telemetry.trace import Tracer, Value
from penstock.worker.bridge import EngineBridge
from penstock.worker.config import WorkerConfig
from penstock.worker.http import read_body
from penstock.worker.metrics import WorkerMetrics
from penstock.worker.stream import Stream

T = TypeVar("T")


@dataclass
class Front:
    """One worker's HTTP side."""

    config: WorkerConfig
    bridge: EngineBridge
    session: aiohttp.ClientSession
    """For calls to other workers."""
    metrics: WorkerMetrics
    tracer: Tracer
    draining: bool = False

    async def receive(self, request: Request, kind: type[T], *, while_draining: bool = False) -> T:
        """The body of a request for work. Raises RequestError, or Overloaded when the worker takes no more."""
        body = await read_body(request, kind, self.config.max_body_bytes)
        if (reason := self.bridge.trouble() if while_draining else self.unready()) is not None:
            raise Overloaded(reason)
        return body

    @contextmanager
    def working_on(
        self, message: Generate | Prefill | Lookup, timeout_s: float, caller: Mapping[str, str]
    ) -> Iterator[Stream]:
        """A request in the engine, as a span of the trace that the headers of its `caller` tell of."""
        request_id = message.request_id if isinstance(message, Lookup) else message.request.request_id
        name = type(message).__name__.lower()
        with (
            self.tracer.begin(name, request_id, caller) as trace,
            self.bridge.open(message, timeout_s, trace) as stream,
        ):
            yield stream

    def log_end(self, **facts: Value) -> None:
        """One line about the current request, which is over, if such lines are wanted."""
        if self.config.log_requests:
            requests_log.info("the request has ended", extra=facts)

    def unready(self) -> str | None:
        """Why the worker takes no new requests, or None when it does."""
        return "this worker is draining" if self.draining else self.bridge.trouble()

    def accepted(self, *, with_peer: bool) -> Accepted:
        """The first frame of a stream."""
        peer = self.bridge.started.peer
        return Accepted(generation=peer.generation, peer=peer if with_peer else None)
