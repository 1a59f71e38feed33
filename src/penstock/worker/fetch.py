"""The calling side of `/prefill` and `/blocks`: another worker's frames go into the engine, and what goes wrong, too.

The call is the lease on the blocks over there. It is closed when the engine has verified what it read, or gives up, or
the request ends.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from penstock.engine.messages import PeerArrived, PeerFailed
from penstock.errors import (
    Overloaded,
    PenstockError,
    PrefillDied,
    PrefillLost,
    PrefillRefused,
    RequestError,
    WorkerLost,
    WorkerSilent,
)
from penstock.hop import open_hop
from penstock.protocol import BlocksRequest, Error, GenerateRequest, Ticket
from penstock.worker.front import Front
from penstock.worker.stream import Stream

log = logging.getLogger(__name__)


@asynccontextmanager
async def beside(stream: Stream, fetch: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs `fetch` until the engine needs no more of it, or the block is left."""
    task = asyncio.ensure_future(fetch)
    stream.on_release = task.cancel
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def fetch_prefill(front: Front, stream: Stream, request: GenerateRequest) -> None:
    """Has the request's prefill worker compute its prompt; asks its source where it names no prefill worker.

    A refusal ends the stream here, since it says nothing against the prefill worker.
    """
    if request.prefill is None:
        await fetch_source(front, stream, request)
        return
    url = request.prefill.rstrip("/") + "/prefill"
    try:
        await _carry(front, stream, url, replace(request, prefill=None))
    except (RequestError, Overloaded) as error:
        stream.fail(PrefillRefused(f"{url}: {error}"))
    except Exception as error:
        _tell(front, stream, url, error)


async def fetch_source(front: Front, stream: Stream, request: GenerateRequest | None) -> None:
    """Asks the request's source for the cached blocks that the engine wants, once it wants any.

    One that says nothing for `source_wait_s` is left: the request waits for it, with all of its blocks reserved.
    """
    if request is None or request.source is None:
        return
    url = request.source.rstrip("/") + "/blocks"
    wanted = BlocksRequest(request_id=stream.id, hashes=await stream.wanted, as_of=request.source_as_of)
    try:
        async with asyncio.timeout(front.config.source_wait_s) as patience:
            await _carry(front, stream, url, wanted, patience)
    except TimeoutError:
        _tell(front, stream, url, PrefillLost(f"no answer within {front.config.source_wait_s:g} s"))
    except Exception as error:
        _tell(front, stream, url, error)


async def _carry(front: Front, stream: Stream, url: str, body: Struct, patience: asyncio.Timeout | None = None) -> None:
    """The frames of a call into the engine, until cancelled. The first ticket ends the `patience`."""
    async with open_hop(front.session, url, body) as hop:
        front.bridge.send(PeerArrived(stream.id, hop.accepted))
        try:
            async for frame in hop.frames():
                if isinstance(frame, Ticket):
                    front.bridge.send(PeerArrived(stream.id, frame))
                elif isinstance(frame, Error):
                    raise PrefillLost(f"{url}: {frame.message}")
                else:
                    raise PrefillLost(f"{url} sent a {type(frame).__name__} frame instead of a ticket")
                if patience is not None:
                    patience.reschedule(None)
        except WorkerSilent:
            raise
        except WorkerLost as error:
            raise PrefillDied(str(error)) from error


def _tell(front: Front, stream: Stream, url: str, error: Exception) -> None:
    """The engine decides what follows."""
    if not isinstance(error, PenstockError):
        log.error("the call to %s failed", url, exc_info=error)
        error = PrefillLost(f"the call to {url} failed: {error!r}")
    front.bridge.send(PeerFailed(stream.id, str(error), died=isinstance(error, PrefillDied)))
