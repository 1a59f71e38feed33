"""An API request up to its placement, which a gateway is told; then its answer, as far as that tells how the work goes.

All that comes before a worker is the router's own: keys, quotas, bodies, tokens, turns, refusals. The booking lasts
until the answer has passed, so that the next placement knows of it.
"""

import asyncio
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress

from penstock.address import authority
from penstock.errors import Overloaded
from penstock.router.beside import PREFILL_HEADER, PRIORITY_HEADER, SOURCE_HEADER
from penstock.router.dialect import dialect_of
from penstock.router.flow.advice import advice_headers
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.memory import Held
from penstock.router.flow.quota import Spending
from penstock.router.flow.room import compute_s
from penstock.router.gateway.exchange import Exchange, Header
from penstock.router.http import ClientGone, Reply
from penstock.router.openai.call import Call
from penstock.router.openai.endpoint import Endpoint, Prepare
from penstock.router.placed import Placed
from penstock.router.services import Services
from penstock.router.trial import Trial
from penstock.telemetry.trace import Value, current

_OURS = [header.decode() for header in (PREFILL_HEADER, SOURCE_HEADER, PRIORITY_HEADER)]
"""Headers that no client sets."""
_EVENT = b"\ndata: {"
_TOTAL = re.compile(rb'(?<!\\)"total_tokens":(\d+)')
"""In the usage, with which an answer in one piece ends. (In a text its first quote would come after a backslash.)"""
_TAIL_BYTES = 512
_MARGIN_S = 0.2
"""The endpoint's deadline is so much sooner, since it can tell the client of it, in the midst of a stream too."""


class Pick(Endpoint):
    """For one request."""

    def __init__(self, services: Services, name: str, prepare: Prepare, exchange: Exchange) -> None:
        super().__init__(services, name, prepare)
        self._exchange = exchange

    async def _fulfil(
        self, call: Call, reply: Reply, arrival: Arrival, held: Held, spending: Spending, facts: dict[str, Value]
    ) -> None:
        """All prompts of a request run at one endpoint: the longest is placed."""
        services, exchange = self._services, self._exchange
        generation = max(call.generations, key=lambda each: len(each.prompt))
        excluded = {
            worker.url: worker.arrival
            for worker in services.cluster.workers
            if worker.role == "decode" and not exchange.allows(_endpoint(services, worker.url))
        }
        placed = await generation.place(len(call.choices), Trial(excluded=excluded))
        endpoint = _endpoint(services, placed.decode)
        watch = _Watch(services, call, placed)
        try:
            with current().span("gateway", "client") as span:
                left_s = arrival.deadline(stream=call.stream) - _MARGIN_S - asyncio.get_running_loop().time()
                headers = _headers(placed, reply.request_id, left_s, span.headers)
                remove = [] if placed.source else [SOURCE_HEADER.decode()]
                if not exchange.allows(endpoint):  # lost and back while this waited, which ends an exclusion
                    raise Overloaded(f"no endpoint is ready that the gateway allows; {endpoint} is")
                watch.used_tokens = 0  # a worker's affair from here on, even if the gateway leaves in the midst of it
                await exchange.pick(endpoint, headers, remove)
                held.release()
                async for status, piece in exchange.rest(reply.headers):
                    watch.see(status, piece)
        finally:
            watch.end()
            services.placer.ended(placed)
            spending.used = watch.used_tokens
            facts |= {"decode": placed.decode, "prefill": placed.prefill or "", "output_tokens": placed.num_output}


class _Watch:
    """What an answer tells while it passes. A stream has an event for nearly every token. An answer in one piece tells
    only in its end what it took: its prompt is taken to be computed when that was predicted."""

    def __init__(self, services: Services, call: Call, placed: Placed) -> None:
        self._placer = services.placer
        self._call = call
        self._placed = placed
        self._openings = sum(call.form.opening(choice) is not None for choice in call.choices)
        """Events still to come that bring no token."""
        self._prompt_tokens = sum(len(generation.prompt) for generation in call.generations)
        self.used_tokens: int | None = None
        """None as long as the request has not gone to a worker, 0 until that has taken it."""
        self._is_answered = False
        self._tail = b"\n"
        """The last of the answer's body, since it comes in pieces."""
        decision = placed.decision
        prediction = decision.placement.prediction
        first_s = prediction.ttft_s if prediction else compute_s(decision.cluster, decision.placement, decision.request)
        self._timer = None if call.stream else asyncio.get_running_loop().call_later(first_s, self._prompt_computed)

    def see(self, status: int, piece: bytes) -> None:
        """The answer's status, or a piece of its body."""
        if status == 200:
            self._is_answered = True
            self.used_tokens = self._prompt_tokens
            if not self._call.stream:
                self._placed.is_resume = True  # its first token was not seen: nothing is to be learned of when it came
                self._placer.computed(self._placed, None)
        elif not self._call.stream:
            self._tail = (self._tail + piece)[-_TAIL_BYTES:]
        elif self.used_tokens:
            body = self._tail + piece
            self._tail = body[1 - len(_EVENT) :]
            events = body.count(_EVENT)
            openings = min(events, self._openings)
            self._openings -= openings
            if events > openings:
                self._produced(events - openings)
                self._placer.computed(self._placed, None)

    def end(self) -> None:
        """In whatever way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_answered and not self._call.stream:
            said = _TOTAL.findall(self._tail)
            total = int(said[-1]) if said else self._call.expected_tokens
            self._produced(max(0, total - self._prompt_tokens))

    def _prompt_computed(self) -> None:
        """As predicted."""
        self._placed.reservation.produced(0)
        if self.used_tokens is not None:
            self.used_tokens = self._prompt_tokens

    def _produced(self, num_tokens: int) -> None:
        self._placed.reservation.produced(num_tokens)
        self._placed.num_output += num_tokens
        self.used_tokens = (self.used_tokens or 0) + num_tokens


async def pass_on(services: Services, exchange: Exchange) -> None:
    """What asks for no tokens goes to who has least to do."""
    workers = sorted(services.cluster.snapshot().decode, key=lambda worker: worker.work)
    endpoints = [_endpoint(services, worker.url) for worker in workers]
    allowed = [endpoint for endpoint in endpoints if exchange.allows(endpoint)]
    with suppress(ClientGone):
        if allowed:
            await exchange.pick(allowed[0], remove=_OURS)
            async for _ in exchange.rest():
                pass
        else:
            error = Overloaded("no endpoint is ready", retry_after_s=1.0)
            dialect = dialect_of(exchange.scope)
            reply = Reply(exchange.send, exchange.receive, uuid.uuid4().hex, dialect.id_headers)
            reply.headers += advice_headers(error)
            await reply.json(dialect.error_body(error, reply.request_id), error.status)


def _headers(placed: Placed, request_id: str, left_s: float, trace: Mapping[str, str]) -> list[Header]:
    """For the router beside the decode worker. That worker itself stands for no prefill worker, so that nobody else can
    name one."""
    headers = {
        PREFILL_HEADER: authority(placed.prefill or placed.decode),
        PRIORITY_HEADER: str(placed.priority),
        b"x-request-id": request_id,
        b"timeout": f"{max(0.001, left_s):.3f}",
    }
    if placed.source:
        headers[SOURCE_HEADER] = authority(placed.source)
    headers |= {name.encode(): value for name, value in trace.items()}
    return [(name, value.encode()) for name, value in headers.items()]


def _endpoint(services: Services, url: str) -> str:
    """Of the router beside the decode worker at `url`."""
    return authority(url, services.config.endpoint_port)
