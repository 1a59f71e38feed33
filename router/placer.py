"""Asks the policy, keeps the books (reservations, prefix index, who failed whom) and judges failures.

The policy is pure and forgets; this is its memory and its hands.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace

import aiohttp

from penstock.errors import (
    DeadlineExceeded,
    Overloaded,
    PrefillLost,
    PrefillRefused,
    RetryableError,
    TransferError,
    WorkerLost,
)
from penstock.protocol import GenerateRequest
from penstock.router.cluster import Cluster, Reservation
from penstock.router.metrics import Metrics
from penstock.router.policy import Placement, PlacementRequest, Policy
from penstock.router.prefix_index import PrefixIndex

_LONG_PROMPT_TOKENS = 16_384
"""Hashing more takes over 2 ms and is done in a thread."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trial:
    """The history of one request's placements."""

    attempts: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    """Workers that failed it, with the number of their arrival: after a restart they are worth a try again."""
    last_error: RetryableError | None = None
    hashes: list[bytes] | None = None
    """Of the prompt's blocks, made when first needed."""
    streaming: bool = False
    lost_at: int | None = None
    """How many output tokens there were when a worker that had taken the request was last lost."""

    def copy(self) -> "Trial":
        return replace(self, excluded=dict(self.excluded))


@dataclass(slots=True)
class Placed:
    """A placement with what was booked for it."""

    decode: str
    prefill: str | None
    salt: str
    reservation: Reservation
    hashes: list[bytes]
    new_hashes: list[bytes]
    """Of the blocks that the computing worker is about to learn."""
    is_resume: bool = False
    is_accepted: bool = False
    is_computed: bool = False


class Placer:
    """Shared by all requests of the router."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        cluster: Cluster,
        policy: Policy,
        index: PrefixIndex,
        metrics: Metrics,
        *,
        max_attempts: int,
        wait_s: float,
    ) -> None:
        self.session = session
        self._cluster = cluster
        self._policy = policy
        self._index = index
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._wait_s = wait_s

    async def place(self, request: GenerateRequest, num_answers: int, trial: Trial, deadline: float) -> Placed:
        """Chooses workers and books the work of `num_answers` samples; waits a little for a worker when there is none.

        Raises RetryableError when none comes.
        """
        if trial.hashes is None and len(request.prompt) > _LONG_PROMPT_TOKENS:
            trial.hashes = await asyncio.to_thread(self._index.hash, request.prompt, request.salt)
        elif trial.hashes is None:
            trial.hashes = self._index.hash(request.prompt, request.salt)
        matched = self._index.match(trial.hashes)
        give_up = min(asyncio.get_running_loop().time() + self._wait_s, deadline)
        while True:
            placement = self._choose(len(request.prompt), matched, trial)
            if placement is not None:
                trial.attempts += 1
                return self._book(placement, request, num_answers, trial, matched)
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
        if self._cluster.met(placed.decode, generation):
            self._index.forget(placed.decode)

    def computed(self, placed: Placed) -> None:
        """The first token came, so the decode worker holds the prompt: until now another request for it would have
        found nothing there, and computing it on the prefill worker was the better choice."""
        if not placed.is_computed:
            placed.is_computed = True
            self._index.record(placed.decode, placed.hashes)

    def learned(self, placed: Placed, tokens: list[int]) -> None:
        """The decode worker now holds `tokens`, prompt and answer."""
        self._index.record(placed.decode, self._index.hash(tokens, placed.salt, placed.hashes))

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
            self._index.retract(placed.prefill, placed.new_hashes)
            if isinstance(error, PrefillLost):
                self._cluster.mark_lost(placed.prefill)
        else:
            trial.excluded[placed.decode] = self._cluster.arrivals(placed.decode)
            if isinstance(error, WorkerLost):
                self._cluster.mark_lost(placed.decode)
                self._index.forget(placed.decode)
        if isinstance(error, WorkerLost) and placed.is_accepted:
            if trial.lost_at == num_output:
                raise WorkerLost(f"a second worker was lost at the same place, maybe by this request: {error}")
            trial.lost_at = num_output
        if trial.attempts >= self._max_attempts:
            raise error

    def _choose(self, prompt_tokens: int, matched: dict[str, int], trial: Trial) -> Placement | None:
        """Without the workers that failed this request; else also with those that came back since."""
        snapshot = self._cluster.snapshot()
        excluded = frozenset(trial.excluded)
        placement = self._policy.choose(PlacementRequest(prompt_tokens, matched, excluded), snapshot)
        if placement is None and trial.excluded:
            still = frozenset(url for url, arrival in trial.excluded.items() if self._cluster.arrivals(url) == arrival)
            placement = self._policy.choose(PlacementRequest(prompt_tokens, matched, still), snapshot)
        return placement

    async def _back_off(self, trial: Trial) -> None:
        """Every worker left is full: a new request is the client's to repeat, a running stream is ours to save."""
        assert trial.last_error is not None
        if not trial.streaming:
            raise trial.last_error
        await asyncio.sleep(min(trial.last_error.retry_after_s or 0.1 * 2**trial.attempts, self._wait_s))
        trial.last_error = None
        trial.excluded.clear()

    def _book(
        self, placement: Placement, request: GenerateRequest, num_answers: int, trial: Trial, matched: dict[str, int]
    ) -> Placed:
        hashes = trial.hashes or []
        computing = placement.prefill or placement.decode
        known = matched.get(computing, 0)
        self._index.record(computing, hashes)
        reservation = self._cluster.reserve(
            placement, len(request.prompt) - known, request.sampling.max_tokens * num_answers
        )
        self._metrics.placements.labels(kind="disaggregated" if placement.prefill else "decode_alone").inc()
        new_hashes = hashes[known // self._index.block_tokens :]
        return Placed(placement.decode, placement.prefill, request.salt, reservation, hashes, new_hashes)
