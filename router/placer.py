"""Asks the policy, keeps the books (reservations, prefix index, who failed whom) and judges failures.

The policy is pure and forgets; this is its memory and its hands.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from penstock.errors import (
    DeadlineExceeded,
    Overloaded,
    PrefillLost,
    PrefillRefused,
    RetryableError,
    Stopping,
    TransferError,
    WorkerLost,
)
from penstock.protocol import Done, GenerateRequest
from penstock.router.cluster import Cluster, Reservation
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import work_of
from penstock.router.flow.gate import Claim, Gate
from penstock.router.flow.room import Room, has_any
from penstock.router.flow.tenants import ANYONE, Tenant
from penstock.router.flow.turns import Busy, Turn, take_turn
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import Prediction, PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placement.journal import Decision, Journal
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Policy
from penstock.telemetry.trace import current

CONFIRMATION_S = 1.0
"""So long after a worker has computed what it was given, its events must have told of it."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trial:
    """The history of one request's placements."""

    attempts: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    """Workers that failed it, with the number of their arrival: after a restart they are worth a try again."""
    last_error: RetryableError | None = None
    keys: PromptKeys | None = None
    """Of the prompt, made when first needed."""
    streaming: bool = False
    lost_at: int | None = None
    """How many output tokens there were when a worker that had taken the request was last lost."""
    leaving: "Placed | None" = None
    """The placement whose worker has just handed the request over: for a moment all of its KV can be read there."""

    def copy(self) -> "Trial":
        return replace(self, excluded=dict(self.excluded))


@dataclass(slots=True)
class Placed:
    """A placement with what was booked for it."""

    decode: str
    prefill: str | None
    source: str | None
    revision: str
    reservation: Reservation
    keys: PromptKeys
    """Of the prompt."""
    cached_tokens: int
    """Prompt tokens that the computing worker is predicted to find in its cache."""
    predictions: list[Prediction]
    """What its workers will hold because of it."""
    decision: Decision
    placed_at: float
    """On the event loop's clock."""
    tenant: Tenant = ANYONE
    work: float = 0.0
    """Charged to the tenant, in tokens."""
    output_work: float = 0.0
    """The part of it that is expected to be the answer's."""
    num_output: int = 0
    priority: int = 0
    """Among the worker's requests."""
    is_resume: bool = False
    is_accepted: bool = False
    is_computed: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be placed."""

    request: GenerateRequest
    num_answers: int
    trial: Trial
    prompt_keys: PromptKeys
    keys: PromptKeys
    """Of the prompt and of the output so far."""


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
        room: Room,
        most_waiting: int,
        longest_wait_s: float,
    ) -> None:
        self.session = session
        self._cluster = cluster
        self._policy = policy
        self._index = index
        self._metrics = metrics
        self._journal = journal
        self._max_attempts = max_attempts
        self._wait_s = wait_s
        self._room = room
        self.gate: Gate[Placed] = Gate(
            has_room=lambda: has_any(cluster.snapshot()),
            undo=self.ended,
            most_waiting=most_waiting,
            longest_wait_s=longest_wait_s,
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
        """Waits for the request's turn, chooses workers and books the work of `num_answers` samples; waits a little for
        a worker when there is none.

        `output` is what one answer that resumes has so far. Raises RetryableError when no worker comes, or when the
        wait would be too long.
        """
        trial.keys = trial.keys or PromptKeys(request.salt, request.prompt)
        keys = trial.keys.followed_by(output) if output else trial.keys
        job = _Job(request, num_answers, trial, trial.keys, keys)
        give_up = min(asyncio.get_running_loop().time() + self._wait_s, deadline)
        while True:
            placed = await self._in_turn(job, arrival, deadline)
            if placed is not None:
                return placed
            if isinstance(trial.last_error, Overloaded):
                await self._back_off(trial)
                continue
            try:
                async with asyncio.timeout_at(give_up):
                    await self._cluster.changed()
            except TimeoutError:
                if give_up == deadline:
                    raise DeadlineExceeded("the request's deadline passed while no worker was ready") from None
                reason = trial.last_error or f"no decode worker became ready within {self._wait_s} s"
                raise Overloaded(f"no worker for this request: {reason}", retry_after_s=1.0) from None

    def accepted(self, placed: Placed, generation: str) -> None:
        """A decode worker answered; another process than before has an empty cache."""
        placed.is_accepted = True
        self._index.met(placed.decode, generation)

    def computed(self, placed: Placed, cached_tokens: int | None) -> None:
        """The first token came, with what was really found in a cache, so the decode worker holds the prompt or soon
        will: until now another request for it would have found nothing there, and computing it on the prefill worker
        was the better choice."""
        if placed.is_computed:
            return
        placed.is_computed = True
        if not placed.is_resume:
            self._came_true(placed, cached_tokens)
        if placed.prefill is not None:
            placed.predictions.append(self._index.predict(placed.decode, placed.keys))
        if cached_tokens is not None and not placed.is_resume:
            outcome = _outcome(placed.cached_tokens, cached_tokens)
            self._metrics.predictions.labels(outcome).inc()
            if outcome != "exact":
                log.debug("%s found %d of %d cached tokens", placed.decode, cached_tokens, placed.cached_tokens)
        self._retract_soon(placed.predictions)
        self.gate.changed()

    def learned(self, placed: Placed, outputs: Sequence[Sequence[int]]) -> None:
        """Answers have ended with these `outputs`, of which the decode worker now holds the first with its prompt, but
        for the last token, which was never fed to it.

        If each had but one token, the prefill worker sampled them and had no reason to hand over the prompt.
        """
        self._journal.answered(placed.decision, max(map(len, outputs)))
        if placed.prefill is not None and max(map(len, outputs)) <= 1:
            _retract(placed.predictions[1:])
            return
        self._retract_soon([self._index.predict(placed.decode, placed.keys.followed_by(outputs[0][:-1]))])

    def ended(self, placed: Placed) -> None:
        """In whatever way. Call once."""
        placed.reservation.release()
        if not placed.is_computed:
            _retract(placed.predictions)
        self.gate.done(placed.tenant, work_of(0, placed.num_output) - placed.output_work)

    def finished(self, placed: Placed, done: Done) -> None:
        """The stream's last frame came."""
        self._journal.finished(placed.decision, done)

    def failed(self, placed: Placed, trial: Trial, error: RetryableError, *, num_output: int) -> None:
        """Notes what `error` says about the workers, after `num_output` output tokens.

        Raises it when the request may not be placed again.
        """
        if isinstance(error, DeadlineExceeded):  # nobody failed
            raise error
        trial.last_error = error
        trial.streaming = num_output > 0
        self._metrics.replacements.labels(reason=error.code).inc()
        log.warning("%s with %s failed a request (%s): %s", placed.decode, placed.prefill, error.code, error)
        if isinstance(error, (PrefillLost, PrefillRefused, TransferError)) and placed.prefill is not None:
            trial.excluded[placed.prefill] = self._cluster.arrivals(placed.prefill)
            if isinstance(error, PrefillLost):
                self._cluster.mark_lost(placed.prefill)
        else:
            trial.excluded[placed.decode] = self._cluster.arrivals(placed.decode)
            if isinstance(error, Stopping):
                trial.leaving = placed
            if isinstance(error, WorkerLost):
                self._cluster.mark_lost(placed.decode)
        if isinstance(error, WorkerLost) and placed.is_accepted:
            if trial.lost_at == num_output:
                raise WorkerLost(f"a second worker was lost at the same place, maybe by this request: {error}")
            trial.lost_at = num_output
        if trial.attempts >= self._max_attempts:
            raise error

    async def _in_turn(self, job: _Job, arrival: Arrival, deadline: float) -> Placed | None:
        """A request waits for its turn once; whoever was under way when a worker failed goes on at once."""
        wanted = self._wanted(job)
        output_work = work_of(0, job.num_answers * wanted.output_tokens)
        prompt_work = max(1, wanted.prompt_tokens - max(wanted.cached_tokens.values(), default=0))
        claim = Claim(arrival, job.request.priority, prompt_work + output_work, deadline)
        if job.trial.attempts:
            cluster = replace(self._cluster.snapshot(), waiting=len(self.gate))
            found = self._choose(wanted, job.trial, cluster)
            if found is None:
                return None
            return self._book(self._take_over(found, job.trial), wanted, cluster, job, claim)

        def attempt(turn: Turn) -> Placed | Busy | None:
            latest = self._wanted(job) if turn.is_later else wanted
            cluster = replace(self._cluster.snapshot(), waiting=len(self.gate))
            found = take_turn(
                lambda full: self._choose(latest, job.trial, cluster, full), latest, cluster, self._room, turn
            )
            if not isinstance(found, Placement):
                return found
            placed = self._book(found, latest, cluster, job, claim, heavy=turn.heavy)
            placed.work, placed.output_work = claim.work, output_work
            return placed

        with current().span("queue", tenant=arrival.tenant.name):
            return await self.gate.enter(claim, attempt)

    def _wanted(self, job: _Job) -> PlacementRequest:
        """To a worker prompt and output so far are all prompt."""
        request, num_tokens = job.request, job.keys.num_tokens
        left = request.sampling.max_tokens - (num_tokens - len(request.prompt))
        return PlacementRequest(
            prompt_tokens=num_tokens,
            cached_tokens=self._index.match(job.keys),
            output_tokens=min(left, self._cluster.books.model.output_tokens),
            num_answers=job.num_answers,
        )

    def _choose(
        self,
        wanted: PlacementRequest,
        trial: Trial,
        cluster: ClusterSnapshot,
        full: frozenset[str] = frozenset(),
    ) -> Placement | None:
        """Without the workers that failed this request; else also with those that came back since."""
        placement = self._policy.choose(replace(wanted, excluded=frozenset(trial.excluded) | full), cluster)
        if placement is None and trial.excluded:
            still = frozenset(url for url, arrival in trial.excluded.items() if self._cluster.arrivals(url) == arrival)
            placement = self._policy.choose(replace(wanted, excluded=still | full), cluster)
        return placement

    def _take_over(self, placement: Placement, trial: Trial) -> Placement:
        """From a worker that hands its streams over all KV can be read: nothing is left for a prefill worker."""
        leaving, trial.leaving = trial.leaving, None
        if leaving is None or leaving.revision != self._cluster.revision(placement.decode):
            return placement
        return Placement(placement.decode, source=leaving.decode)

    async def _back_off(self, trial: Trial) -> None:
        """Every worker left is full: a new request is the client's to repeat, a running stream is ours to save."""
        assert trial.last_error is not None
        if not trial.streaming:
            raise trial.last_error
        await asyncio.sleep(min(trial.last_error.retry_after_s or 0.1 * 2**trial.attempts, self._wait_s))
        trial.last_error = None
        trial.excluded.clear()

    def _book(
        self,
        placement: Placement,
        wanted: PlacementRequest,
        cluster: ClusterSnapshot,
        job: _Job,
        claim: Claim,
        *,
        heavy: bool = False,
    ) -> Placed:
        job.trial.attempts += 1
        decision = self._journal.placed(job.request.request_id, wanted, cluster, placement)
        computing = placement.prefill or placement.decode
        cached = max(wanted.cached_tokens.get(url or "", 0) for url in (computing, placement.source))
        reservation = self._cluster.reserve(placement, wanted)
        self._metrics.placements.labels(kind="disaggregated" if placement.prefill else "decode_alone").inc()
        return Placed(
            decode=placement.decode,
            prefill=placement.prefill,
            source=placement.source,
            revision=self._cluster.revision(placement.decode),
            reservation=reservation,
            keys=job.prompt_keys,
            cached_tokens=cached,
            predictions=[self._index.predict(computing, job.keys)],
            decision=decision,
            placed_at=asyncio.get_running_loop().time(),
            tenant=claim.tenant,
            priority=claim.wire_priority(heavy=heavy),
        )

    def _came_true(self, placed: Placed, cached_tokens: int | None) -> None:
        decision = placed.decision
        self._journal.came_true(decision, asyncio.get_running_loop().time() - placed.placed_at, cached_tokens)
        prediction = decision.placement.prediction
        if prediction is not None and decision.ttft_s is not None:
            self._metrics.ttft_error.observe(abs(decision.ttft_s - prediction.ttft_s))
            self._metrics.regret.inc(decision.regret_s or 0.0)

    def _retract_soon(self, predictions: list[Prediction]) -> None:
        asyncio.get_running_loop().call_later(CONFIRMATION_S, _retract, predictions)


def _retract(predictions: list[Prediction]) -> None:
    for prediction in predictions:
        prediction.retract()


def _outcome(predicted: int, actual: int) -> str:
    return "exact" if actual == predicted else "fewer" if actual < predicted else "more"
