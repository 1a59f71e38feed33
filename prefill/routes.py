"""The prefill worker's routes: compute a prompt, or look blocks up, and hold them as long as the call stays open.

THE CALL IS THE LEASE. The blocks behind the tickets stay put until the caller closes the call, which is all it has to
do to free them, whether it has read everything or died. `lease_s` only ends calls whose other end vanished silently.
"""

import time
from collections.abc import Mapping
from functools import partial

from fastapi import APIRouter, Request, Response

from penstock.engine.messages import Lookup, Prefill
from penstock.errors import PrefillLost
from penstock.protocol import BlocksRequest, GenerateRequest, Ticket
from penstock.telemetry.trace import incoming
from penstock.worker.checks import check_blocks_request, check_request
from penstock.worker.fetch import beside, fetch_source
from penstock.worker.front import Front
from penstock.worker.http import FrameResponse, Write


def prefill_routes(front: Front) -> APIRouter:
    """Routes that answer with tickets."""
    routes = APIRouter()
    limits, engine = front.bridge.started.limits, front.config.engine

    @routes.post("/prefill")
    async def prefill(http: Request) -> Response:
        """Computes a prompt and samples the first token of each sample; tickets follow as blocks fill."""
        request = await front.receive(http, GenerateRequest)
        check_request(request, limits, max_samples=engine.max_sequences, prefill_only=True)
        return FrameResponse(partial(_hold, front, Prefill(request), request.timeout_s, incoming(http.headers.raw)))

    @routes.post("/blocks")
    async def blocks(http: Request) -> Response:
        """Tickets for the longest cached run of the given block hashes."""
        request = await front.receive(http, BlocksRequest, while_draining=True)  # who takes over wants them
        check_blocks_request(request, limits)
        message = Lookup(request.request_id, request.hashes, request.as_of)
        return FrameResponse(partial(_hold, front, message, engine.lease_s, incoming(http.headers.raw)))

    return routes


async def _hold(
    front: Front, message: Prefill | Lookup, timeout_s: float, caller: Mapping[str, str], write: Write
) -> None:
    """Forwards frames until the caller leaves (which cancels this), an error ends the stream, or the lease is over."""
    lease_s = front.config.engine.lease_s
    over = PrefillLost(f"the lease of {lease_s:g} s is over")
    request = message.request if isinstance(message, Prefill) else None
    began, leased_at, num_blocks = time.perf_counter(), 0.0, 0
    with front.working_on(message, timeout_s, caller) as stream:
        try:
            async with beside(stream, fetch_source(front, stream, request)):
                await write([front.accepted(with_peer=True)])
                async for frames in stream.batches():
                    tickets = [frame for frame in frames if isinstance(frame, Ticket)]
                    num_blocks += sum(len(ticket.blocks) for ticket in tickets)
                    if any(ticket.last for ticket in tickets):
                        stream.expire(lease_s, over)
                        leased_at = time.perf_counter()
                    await write(frames)
        finally:
            now = time.perf_counter()
            if leased_at:
                stream.trace.record("lease", now - leased_at, blocks=num_blocks)
            front.log_end(blocks=num_blocks, seconds=round(now - began, 6))
