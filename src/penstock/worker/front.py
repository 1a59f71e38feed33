"""What the routes of a worker share: its configuration, its engine, and whether it takes new requests."""

from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from starlette.requests import Request

from penstock.errors import Overloaded
from penstock.protocol import Accepted
from penstock.worker.bridge import EngineBridge
from penstock.worker.config import WorkerConfig
from penstock.worker.http import read_body
from penstock.worker.metrics import WorkerMetrics

T = TypeVar("T")


@dataclass
class Front:
    """One worker's HTTP side."""

    config: WorkerConfig
    bridge: EngineBridge
    session: aiohttp.ClientSession
    """For calls to other workers."""
    metrics: WorkerMetrics
    draining: bool = False

    async def receive(self, request: Request, kind: type[T], *, while_draining: bool = False) -> T:
        """The body of a request for work. Raises RequestError, or Overloaded when the worker takes no more."""
        body = await read_body(request, kind, self.config.max_body_bytes)
        if (reason := self.bridge.trouble() if while_draining else self.unready()) is not None:
            raise Overloaded(reason)
        return body

    def unready(self) -> str | None:
        """Why the worker takes no new requests, or None when it does."""
        return "this worker is draining" if self.draining else self.bridge.trouble()

    def accepted(self, *, with_peer: bool) -> Accepted:
        """The first frame of a stream."""
        peer = self.bridge.started.peer
        return Accepted(generation=peer.generation, peer=peer if with_peer else None)
