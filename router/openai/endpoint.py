"""The life of one API request: read, prepare, run, write; and the one place where its errors become answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeAlias

from starlette.types import Receive, Scope, Send

from penstock.errors import RequestError, RetryableError
from penstock.router.answer_text import Delta
from penstock.router.beside import picked_of
from penstock.router.corked import is_free_of
from penstock.router.dialect import dialect_of
from penstock.router.flow.advice import advice_headers
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.memory import Held
from penstock.router.flow.patience import patience_of
from penstock.router.flow.quota import Spending
from penstock.router.generation import Event, Generation, Output, Started
from penstock.router.http import ClientGone, Lifeline, Reply, header, request_id_of
from penstock.router.merge import merge
from penstock.router.openai.call import Call, Choice
from penstock.router.openai.errors import error_status, named_for_api
from penstock.router.openai.responses import Usage
from penstock.router.outbox import SlowClient
from penstock.router.services import Services
from penstock.telemetry.logs import requests_log
from penstock.telemetry.trace import Value, current, incoming

log = logging.getLogger(__name__)

Prepare: TypeAlias = Callable[[Services, Arrival], Awaitable[Call]]

_LAST_WORD_S = 0.5
_SEMANTIC_NAMES = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "first_token_s": "gen_ai.server.time_to_first_token",
}
"""What OpenTelemetry's conventions for generative AI call it."""


class Endpoint:
    """An ASGI application for one path; `prepare` knows the body's form."""

    def __init__(self, services: Services, name: str, prepare: Prepare) -> None:
        self._services = services
        self._name = name
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        dialect = dialect_of(scope)
        reply = Reply(send, receive, request_id_of(scope), dialect.id_headers, is_free_of(scope))
        metrics = self._services.metrics
        outcome = "200"
        facts: dict[str, Value] = {"endpoint": self._name, "model": self._services.model.name}
        trace = self._services.tracer.begin(self._name, reply.request_id, incoming(scope["headers"]))
        with trace, metrics.running.track_inprogress(), metrics.duration.time():
            try:
                await self._answer(scope, receive, reply, facts)
            except ClientGone:
                outcome = "client_gone"
            except SlowClient as error:
                outcome = "client_slow"
                log.warning("the request is cut: %s", error)
            except Exception as error:
                if not isinstance(error, (RequestError, RetryableError)):
                    log.exception("request failed unexpectedly")
                outcome = str(error_status(error))
                trace.failed(error)
                await _fail(reply, error, dialect.error_body(error, reply.request_id))
            finally:
                reply.close()
                metrics.requests.labels(self._name, outcome).inc()
                facts["status"] = outcome
                trace.note(**{_SEMANTIC_NAMES.get(name, name): value for name, value in facts.items()})
                if self._services.config.log_requests:
                    requests_log.info("the request has ended", extra=facts)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply, facts: dict[str, Value]) -> None:
        services, config = self._services, self._services.config
        reply.is_early = True
        tenant = services.tenant(scope)
        if tenant.name:
            facts["tenant"] = tenant.name
        patience = patience_of(
            scope, default_s=config.timeout_s, longest_s=config.max_timeout_s, silence_s=config.silence_s
        )
        async with Lifeline(receive, patience.longest_s, services.lifelines) as lifeline:
            is_first_try = header(scope, b"x-stainless-retry-count") == "0"
            arrival = Arrival(reply.request_id, tenant, patience, lifeline.began, is_first_try=is_first_try)
            if config.beside:
                arrival.picked = picked_of(scope)
            with services.bodies.hold() as held:
                arrival.body = await lifeline.body(
                    scope, config.max_body_bytes, timeout_s=config.body_timeout_s, take=held.add
                )
                reply.is_early = False
                async with services.quotas.spending(arrival, reply.headers) as spending:
                    services.placer.gate.check(arrival)
                    call = await self._prepare(services, arrival)
                    arrival.seal()
                    lifeline.end_by(arrival.deadline(stream=call.stream))
                    await spending.expect(call.expected_tokens)
                    await self._fulfil(call, reply, arrival, held, spending, facts)
                    lifeline.answered()

    async def _fulfil(
        self, call: Call, reply: Reply, arrival: Arrival, held: Held, spending: Spending, facts: dict[str, Value]
    ) -> None:
        """Answers a call that may go on; `held` is the memory of its body, `facts` are what the log will say of it."""
        held.release()
        run = _Run(self._services, call, reply, arrival)
        try:
            await (run.stream() if call.stream else run.whole())
        except RequestError as error:  # a worker's
            raise named_for_api(error, call.prompt_field, call.max_tokens_field) from error
        finally:
            facts |= run.facts()
            if run.has_begun:
                spending.used = call.usage().total_tokens


class _Run:
    """One call being answered."""

    def __init__(self, services: Services, call: Call, reply: Reply, arrival: Arrival) -> None:
        self._metrics = services.metrics
        self._call = call
        self._reply = reply
        self._arrival = arrival
        self._workers: dict[Generation, Started] = {}
        self._is_open = False
        self._first_token_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a worker has taken any of it."""
        return bool(self._workers)

    async def stream(self) -> None:
        """Server-sent events; headers leave once every prompt is accepted by a worker, or when the client must get a
        sign of life."""
        call, reply = self._call, self._reply
        reply.never_silent(self._arrival.patience.silence_s)
        waiting: list[tuple[Choice, Delta]] = []
        has_token_left = False
        async with aclosing(self._events()) as events:
            async for event in events:
                waiting += self._take(event)
                if len(self._workers) < len(call.generations):
                    continue
                if not self._is_open:
                    await self._open()
                for choice, delta in waiting:
                    await reply.event(call.form.chunk(choice, delta))
                waiting.clear()
                if not has_token_left and self._first_token_s is not None:
                    has_token_left = True
                    await asyncio.sleep(0)  # the connection writes; all that is done about the token comes after that
        usage = self._count()
        if call.include_usage:
            await reply.event(call.form.usage_chunk(usage))
        await reply.end_events()

    async def whole(self) -> None:
        """One body when all answers are complete."""
        call = self._call
        async with aclosing(self._events()) as events:
            async for event in events:
                for choice, delta in self._take(event):
                    choice.keep(delta)
        usage = self._count()
        self._name_workers()
        await self._reply.json(call.form.whole(call.choices, usage))

    async def _open(self) -> None:
        self._is_open = True
        if not self._reply.status:
            self._name_workers()
            await self._reply.start_events()
        for choice in self._call.choices:
            opening = self._call.form.opening(choice)
            if opening is not None:
                await self._reply.event(opening)

    def _take(self, event: Event) -> tuple[tuple[Choice, Delta], ...]:
        """The text that has become certain, if any."""
        if isinstance(event, Started):
            self._workers[event.generation] = event
            return ()
        choice = self._call.choices[event.choice]
        if choice.finish_reason:
            return ()  # a stop string ended it while this event waited in `merge`
        if isinstance(event, Output):
            self._note_first_token()
            delta = choice.text.push(event.tokens, event.logprobs)
            if choice.text.stopped:
                choice.generation.end(choice.index)
        else:
            delta = choice.text.finish(event.reason)
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
        return ((choice, delta),) if delta else ()

    def _events(self) -> AsyncGenerator[Event, None]:
        generations = self._call.generations
        if len(generations) == 1:
            return generations[0].events()
        return merge([generation.events() for generation in generations])

    def facts(self) -> dict[str, Value]:
        """What the log and the trace say of the request: so far, when it has failed."""
        usage = self._call.usage()
        facts: dict[str, Value] = {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "seconds": round(asyncio.get_running_loop().time() - self._arrival.began, 6),
        }
        if self._first_token_s is not None:
            facts["first_token_s"] = round(self._first_token_s, 6)
        return facts | {role: ", ".join(urls) for role, urls in self._urls().items()}

    def _note_first_token(self) -> None:
        if self._first_token_s is None:
            self._first_token_s = asyncio.get_running_loop().time() - self._arrival.began
            self._metrics.first_token.observe(self._first_token_s)
            current().record("first_token", self._first_token_s)

    def _name_workers(self) -> None:
        """Says in headers which workers had a part."""
        for role, urls in self._urls().items():
            self._reply.headers.append((b"x-penstock-" + role.encode(), ", ".join(urls).encode("latin-1")))

    def _urls(self) -> dict[str, list[str]]:
        """The workers that took part so far by role, each once, in the order of the prompts."""
        started = [self._workers[each] for each in self._call.generations if each in self._workers]
        urls = {
            "prefill": [one.prefill for one in started if one.prefill is not None],
            "decode": [one.decode for one in started],
        }
        return {role: list(dict.fromkeys(found)) for role, found in urls.items() if found}

    def _count(self) -> Usage:
        usage = self._call.usage()
        self._metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._metrics.output_tokens.inc(usage.completion_tokens)
        self._metrics.cached_tokens.inc(usage.prompt_tokens_details.cached_tokens)
        return usage


async def _fail(reply: Reply, error: Exception, body: bytes) -> None:
    """The error's body; or, when the stream is open, an error event. The caller then returns without a last chunk, and
    the server cuts the connection: a stream that failed must not look complete."""
    if reply.status:
        with suppress(TimeoutError, SlowClient):  # a client that does not read would hold us here for ever
            async with asyncio.timeout(_LAST_WORD_S):
                await reply.event(body)
                await reply.flush()
        return
    reply.headers += advice_headers(error)
    await reply.json(body, error_status(error))
