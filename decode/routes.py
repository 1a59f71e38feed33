"""The decode worker's route: answers a request, whose prompt's KV blocks a prefill worker may provide.

The call to the prefill worker runs beside the engine's own prefix match; this front only carries its frames into the
engine, and closes the call, which frees the blocks over there, once the engine has verified what it read.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request, Response
from msgspec.structs import replace

from penstock.engine.messages import Generate, PrefillArrived, PrefillFailed
from penstock.errors import Overloaded, PrefillLost, PrefillRefused, RequestError, RetryableError
from penstock.hop import open_hop
from penstock.protocol import Error, GenerateRequest, Ticket
from penstock.telemetry.trace import incoming
from penstock.worker.checks import check_request
from penstock.worker.front import Front
from penstock.worker.http import FrameResponse, Write
from penstock.worker.metrics import RequestMeter
from penstock.worker.stream import Stream

log = logging.getLogger(__name__)


def decode_routes(front: Front) -> APIRouter:
    """Routes that answer with tokens."""
    routes = APIRouter()
    limits, engine = front.bridge.started.limits, front.config.engine

    @routes.post("/generate")
    async def generate(http: Request) -> Response:
        """Streams the output tokens of every sample."""
        request = await front.receive(http, GenerateRequest)
        check_request(request, limits, max_samples=engine.max_sequences)
        return FrameResponse(partial(_generate, front, request, incoming(http.headers.raw)))

    return routes


async def _generate(front: Front, request: GenerateRequest, caller: Mapping[str, str], write: Write) -> None:
    """Forwards the engine's frames to the caller until the last one."""
    with front.working_on(Generate(request), request.timeout_s, caller) as stream:
        meter = RequestMeter(front.metrics, stream.trace)
        fetching = asyncio.ensure_future(_fetch_prefill(front, stream, request))
        stream.on_release = fetching.cancel
        try:
            await write([front.accepted(with_peer=False)])
            async for frames in stream.batches():
                meter.observe(frames)
                await write(frames)
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])
            front.log_end(prompt_tokens=len(request.prompt), prefill=request.prefill or "", **meter.end())


async def _fetch_prefill(front: Front, stream: Stream, request: GenerateRequest) -> None:
    """Carries the prefill worker's frames into the engine until cancelled; a failure of any kind as PrefillFailed.

    A refusal ends the stream here, since it says nothing against the prefill worker.
    """
    if request.prefill is None:
        return
    url = request.prefill.rstrip("/") + "/prefill"
    try:
        async with open_hop(front.session, url, replace(request, prefill=None)) as hop:
            front.bridge.send(PrefillArrived(stream.id, hop.accepted))
            async for frame in hop.frames():
                if isinstance(frame, Ticket):
                    front.bridge.send(PrefillArrived(stream.id, frame))
                elif isinstance(frame, Error):
                    raise PrefillLost(f"{url}: {frame.message}")
                else:
                    raise PrefillLost(f"{url} sent a {type(frame).__name__} frame instead of a ticket")
    except (RequestError, Overloaded) as error:
        stream.fail(PrefillRefused(f"{url}: {error}"))
    except RetryableError as error:
        front.bridge.send(PrefillFailed(stream.id, str(error)))
    except Exception as error:
        log.exception("the call to %s failed", url)
        front.bridge.send(PrefillFailed(stream.id, f"the call to {url} failed: {error!r}"))
