"""The decode worker's route: answers a request, whose prompt's KV blocks another worker may provide.

The call to that worker runs beside the engine's own prefix match; this front only carries its frames into the engine,
and closes the call, which frees the blocks over there, once the engine has verified what it read.
"""

from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request, Response

from penstock.engine.messages import Generate
from penstock.protocol import GenerateRequest
from penstock.telemetry.trace import incoming
from penstock.worker.checks import check_request
from penstock.worker.fetch import beside, fetch_prefill
from penstock.worker.front import Front
from penstock.worker.http import FrameResponse, Write
from penstock.worker.metrics import RequestMeter


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
        try:
            async with beside(stream, fetch_prefill(front, stream, request)):
                await write([front.accepted(with_peer=False)])
                async for frames in stream.batches():
                    meter.observe(frames)
                    await write(frames)
        finally:
            front.log_end(prompt_tokens=len(request.prompt), prefill=request.prefill or "", **meter.end())
