"""Asks the policy when a request's turn has come, and books what was chosen.

The policy is pure and forgets; this is its hands. Its memory: trial.py (who failed whom) and expectations.py.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import aiohttp

from penstock.errors import DeadlineExceeded, Overloaded, RequestError, RetryableError, Stopping, reason_of
from penstock.protocol import GenerateRequest
from penstock.router.cluster import Cluster
from penstock.router.expectations import Expectations
from penstock.router.flow.admission import Bounds, Claim
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import work_of
from penstock.router.flow.gate import Gate
from penstock.router.flow.memory import Memory
from penstock.router.flow.room import Room
from penstock.router.flow.tenants import Tenant
from penstock.router.flow.turns import Busy, Retest, Turn, take_turn
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placed import Placed
from penstock.router.placement.journal import Journal
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Policy
from penstock.router.trial import Trial, blamed, is_loss
from penstock.telemetry.trace import current

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be placed."""

    request: GenerateRequest
    num_answers: int
    trial: Trial
    prompt_keys: PromptKeys
    keys: PromptKeys
    """Of the prompt and of the output so far."""

    @property
    def num_tokens(self) -> int:
        """Of the prompt and of the longest answer to it."""
        return len(self.request.prompt) + self.request.sampling.max_tokens


class Placer:
    """Shared by all requests of the router."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cluster: Cluster,
        policy: Policy,
        index: PrefixIndex,
        metrics: Metrics,
        journal: Journal,
        *,
        max_attempts: int,
        wait_s: float,
        stream_wait_s: float,
        room: Room,
        bounds: Bounds,
    ) -> None:
        self.session = session
        self._cluster = cluster
        self._policy = policy
        self._index = index
        self._metrics = metrics
        self._journal = journal
        self.expectations = Expectations(index, journal, metrics)
        self._max_attempts = max_attempts
        self._wait_s, self._stream_wait_s = wait_s, stream_wait_s
        self._room = room
        most = bounds.prompt_tokens
        self._stranded = Memory(most, f"no decode worker takes it, and prompts of {most} tokens wait for one already")
        self._retest = Retest()
        self.gate: Gate[Placed] = Gate(
            has_room=self._has_room,
            undo=self.ended,
            bounds=bounds,
            on_left=metrics.queue_wait.observe,
            on_refused=lambda reason: metrics.refusals.labels(reason=reason).inc(),
        )

    async def place(
        self,
        request: GenerateRequest,
        num_answers: int,
        trial: Trial,
        deadline: float,
        arrival: Arrival,
        output: Sequence[int] = (),
    ) -> Placed:
        """Waits for the request's turn, chooses workers and books the work of `num_answers` samples; waits for a
        worker when there is none, longer for an answer that has begun.

        `output` is what one answer that resumes has so far. Raises RetryableError when no worker comes, or when the
        wait would be too long.
        """
        trial.keys = trial.keys or PromptKeys(request.salt, request.prompt)
        keys = trial.keys.followed_by(output) if output else trial.keys
        job = _Job(request, num_answers, trial, trial.keys, keys)
        loop = asyncio.get_running_loop()
        longest_s = self._stream_wait_s if trial.has_begun else self._wait_s
        wait_s = longest_s  # without any worker; the wait for its turn before others does not count, nor for full ones
        while True:
            change = self._cluster.change()  # one while the request comes back from its turn counts too
            placed = await self._in_turn(job, arrival, deadline)
            if placed is not None:
                return placed
            if isinstance(trial.last_error, Overloaded):
                await asyncio.sleep(trial.pause_s(self._wait_s))
                continue
            if trial.last_error is not None and self._is_hopeless(trial):
                raise trial.last_error
            began = loop.time()
            try:
                with self._stranded.hold() as held:
                    if not (trial.attempts or trial.has_begun):  # those under way have their place
                        held.add(job.keys.num_tokens)
                    async with asyncio.timeout_at(min(began + wait_s, deadline)):
                        await change.wait()
                wait_s -= loop.time() - began
            except TimeoutError:
                if deadline < began + wait_s:
                    raise DeadlineExceeded("the request's deadline passed while no worker was ready") from None
                which = " with this answer's weights" if trial.has_begun else ""
                lost = f"; before that, {trial.last_error}" if trial.last_error else ""
                raise Overloaded(
                    f"no decode worker{which} became ready within {longest_s:g} s{lost}", retry_after_s=1.0
                ) from None

    def computed(self, placed: Placed, cached_tokens: int | None) -> None:
        """The first token came, with what was really found in a cache. Calls after the first are ignored."""
        if not placed.is_computed:
            self._retest.computed(asyncio.get_running_loop().time(), tested=placed.is_test)
            self.expectations.computed(placed, cached_tokens)
            self.gate.changed()

    def ended(self, placed: Placed) -> None:
        """In whatever way. Call once. The tenant pays for what was done."""
        placed.reservation.release()
        self.expectations.ended(placed)
        if placed.is_test and not placed.is_computed:
            self._retest.in_vain(asyncio.get_running_loop().time())
        prompt_work = placed.work - placed.output_work if placed.is_computed else 0.0
        self.gate.done(placed.tenant, prompt_work + work_of(0, placed.num_output) - placed.work)

    def failed(self, placed: Placed, trial: Trial, error: RetryableError, *, num_output: int) -> None:
        """Notes what `error` says about the workers, after `num_output` output tokens.

        Raises it when the request may not be placed again.
        """
        placed.decision.failure = reason_of(error)
        if isinstance(error, DeadlineExceeded):  # nobody failed
            raise error
        self._metrics.replacements.labels(reason=error.code).inc()
        with_prefill = f" with {placed.prefill}" if placed.prefill else ""
        log.warning("%s%s failed a request (%s): %s", placed.decode, with_prefill, error.code, error)
        worker = blamed(placed, error)
        if is_loss(placed, error) and placed.arrivals[worker] == self._cluster.arrival(worker):
            self._cluster.mark_lost(worker)
        trial.failed(placed, error, num_output=num_output, max_attempts=self._max_attempts)

    async def _in_turn(self, job: _Job, arrival: Arrival, deadline: float) -> Placed | None:
        """A request waits for its turn once; whoever was under way when a worker failed goes on at once."""
        wanted = self._wanted(job, arrival)
        output_work = work_of(0, job.num_answers * wanted.output_tokens)
        prompt_work = max(1, wanted.prompt_tokens - max(wanted.cached_tokens.values(), default=0))
        claim = Claim(arrival, job.request.priority, prompt_work + output_work, deadline, wanted.prompt_tokens)
        if job.trial.attempts:
            wanted = replace(wanted, priority=claim.wire_priority(heavy=False))
            weights = job.trial.weights if job.trial.has_begun else ""  # an answer is that of one model
            cluster = self._cluster.snapshot(
                weights, num_tokens=job.num_tokens, waiting=self.gate.waiting(claim), priority=wanted.priority
            )
            found = self._choose(wanted, job.trial, cluster)
            if found is None:
                return None
            found = job.trial.take_over(found, self._cluster.revision(found.decode))
            placed = self._book(found, wanted, cluster, job, claim.tenant)
            if not job.trial.has_begun:  # nothing was done yet, nor paid for
                placed.work, placed.output_work = claim.work, output_work
                self.gate.charge(claim.tenant, claim.work)
            return placed

        def attempt(turn: Turn) -> Placed | Busy | None:
            latest = replace(self._wanted(job, arrival) if turn.queued_s else wanted, priority=turn.priority)
            cluster = self._cluster.snapshot(num_tokens=job.num_tokens, waiting=turn.waiting, priority=turn.priority)

            def take(turn: Turn) -> Placement | Busy | None:
                return take_turn(
                    lambda wanted: self._choose(wanted, job.trial, cluster), latest, cluster, self._room, turn
                )

            is_test = False
            try:
                found = take(turn)
            except RequestError:
                if not self._retest.is_due(turn, asyncio.get_running_loop().time()):
                    raise
                found, is_test = take(replace(turn, remaining_s=math.inf)), True
            if not isinstance(found, Placement):
                return found
            placed = self._book(found, latest, cluster, job, claim.tenant)
            placed.work, placed.output_work = claim.work, output_work
            if is_test:
                placed.is_test = True
                self._retest.begins()
            return placed

        with current().span("queue", tenant=arrival.tenant.name):
            return await self.gate.enter(claim, attempt)

    def _is_hopeless(self, trial: Trial) -> bool:
        """Every decode worker is there and has failed it: none that comes back would be another. But whoever leaves is
        still there for a moment."""
        failed = trial.still_excluded(self._cluster.arrival)
        decode = [worker for worker in self._cluster.workers if worker.role == "decode"]
        all_failed = bool(decode) and all(worker.ready and worker.url in failed for worker in decode)
        return all_failed and not isinstance(trial.last_error, Stopping)

    def _has_room(self, turn: Turn) -> bool:
        limits = self._room.of(in_line=turn.in_line, heavy=turn.heavy)
        return limits.any(self._cluster.snapshot(priority=turn.priority), kept=turn.kept)

    def _wanted(self, job: _Job, arrival: Arrival) -> PlacementRequest:
        """To a worker prompt and output so far are all prompt."""
        request, num_tokens = job.request, job.keys.num_tokens
        left = request.sampling.max_tokens - (num_tokens - len(request.prompt))
        cached_tokens = self._index.match(job.keys)
        return PlacementRequest(
            prompt_tokens=num_tokens,
            cached_tokens=cached_tokens,
            pending=self._index.pending(job.keys, cached_tokens),
            output_tokens=min(left, self._cluster.books.model.output_tokens),
            num_answers=job.num_answers,
            picked=arrival.picked,
        )

    def _choose(
        self,
        wanted: PlacementRequest,
        trial: Trial,
        cluster: ClusterSnapshot,
    ) -> Placement | None:
        """Without the workers that failed this request; else also with those that came back since."""
        if not trial.excluded:
            return self._policy.choose(wanted, cluster)
        placement = self._policy.choose(replace(wanted, excluded=wanted.excluded.union(trial.excluded)), cluster)
        if placement is None:
            excluded = wanted.excluded | trial.still_excluded(self._cluster.arrival)
            placement = self._policy.choose(replace(wanted, excluded=excluded), cluster)
        return placement

    def _book(
        self,
        placement: Placement,
        wanted: PlacementRequest,
        cluster: ClusterSnapshot,
        job: _Job,
        tenant: Tenant,
    ) -> Placed:
        job.trial.attempts += 1
        job.trial.weights = self._cluster.weights(placement.decode)
        decision = self._journal.placed(
            job.request.request_id,
            wanted,
            cluster,
            placement,
            answered_tokens=job.keys.num_tokens - job.prompt_keys.num_tokens,
            after=reason_of(job.trial.last_error) if job.trial.last_error else "",
        )
        _, cached = placement.relies_on(wanted)
        reservation = self._cluster.reserve(placement, wanted)
        self._metrics.placements.labels("disaggregated" if placement.prefill else "decode_alone").inc()
        return Placed(
            decode=placement.decode,
            prefill=placement.prefill,
            source=placement.source,
            revision=self._cluster.revision(placement.decode),
            reservation=reservation,
            keys=job.prompt_keys,
            cached_tokens=cached,
            as_of=self._index.as_of(placement.computing),
            source_as_of=self._index.as_of(placement.source or ""),
            expected=self.expectations.placed(placement.computing, job.keys),
            decision=decision,
            placed_at=asyncio.get_running_loop().time(),
            arrivals={url: self._cluster.arrival(url) for url in (placement.decode, placement.prefill) if url},
            tenant=tenant,
            priority=wanted.priority,
        )
