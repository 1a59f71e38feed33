"""What the router has in flight on each worker, as the snapshot that policies see.

Pure: every call is told the time. The router's Cluster keeps it with real workers, the simulator with modelled ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.protocol import Events, Load, StepTiming
from penstock.router.placement.costs import StepCost, attention_pairs
from penstock.router.placement.model import CostModel
from penstock.router.placement.totals import NOTHING, Totals
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Role, WorkerState

STEPS_PER_S = 100.0
"""Costs are learned from so many steps of one worker in a second: who reports more is not heard more than others."""


@dataclass(frozen=True, slots=True)
class About:
    """What a worker says of itself once: its kind and its sizes, in tokens."""

    kind: str = ""
    block_tokens: int = 16
    step_tokens: int = 2048
    layout: str = ""
    """Only workers with equal layouts of the KV cache can read each other's blocks."""
    max_streams: int = 0
    """Sequences that its engine batches; 0 where unknown."""


@dataclass(slots=True, eq=False)
class Account:
    """One worker's entry."""

    url: str
    role: Role
    revision: str = ""
    node: str = ""
    about: About = field(default_factory=About)
    load: Load | None = None
    """What it last said that it is doing."""
    queue: dict["Booking", None] = field(default_factory=dict)
    """Prompts to compute, first come first served."""
    guests: int = 0
    """Of them, those whose answers other workers stream."""
    head_since_s: float = 0.0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    streams: int = 0
    context_tokens: int = 0
    output_tokens: int = 0
    arriving_tokens: int = 0
    """KV of prompts that are booked and not computed yet: the worker's own figures may not count it."""
    others: Totals = NOTHING
    """What the other routers have booked."""
    steps_left: float = STEPS_PER_S
    steps_at_s: float = 0.0
    state: WorkerState | None = None
    """As last given, until something changes."""

    def sampled(self, timings: Sequence[StepTiming], now_s: float) -> Sequence[StepTiming]:
        """Those of a worker's steps that costs are learned from."""
        self.steps_left = min(STEPS_PER_S, self.steps_left + STEPS_PER_S * (now_s - self.steps_at_s))
        self.steps_at_s = now_s
        taken = timings[: int(self.steps_left)]
        self.steps_left -= len(taken)
        return taken

    def totals(self) -> Totals:
        """What is booked here."""
        return Totals(
            prefill_tokens=self.prefill_tokens,
            prefill_pairs=self.prefill_pairs,
            prompts=len(self.queue),
            guests=self.guests,
            streams=self.streams,
            context_tokens=self.context_tokens,
            output_tokens=self.output_tokens,
            arriving_tokens=self.arriving_tokens,
        )


class Booking:
    """One placement's work on the books of its workers, until it is done or given up."""

    def __init__(
        self, decode: Account | None, compute: Account | None, request: PlacementRequest, cached: int, now_s: float
    ) -> None:
        """`compute` is who computes the prompt but for `cached` tokens; None for a worker that is gone."""
        prompt = request.prompt_tokens
        self._decode, self._compute = decode, compute
        self.tokens = max(1, prompt - cached)
        self.pairs = attention_pairs(prompt, prompt - self.tokens)
        self._context_tokens = prompt * request.num_answers
        self._output_tokens = request.output_tokens * request.num_answers
        self._streams = request.num_answers
        self._arriving: list[tuple[Account, int]] = []
        if decode is not None:
            self._arriving.append((decode, max(0, prompt - request.cached_tokens.get(decode.url, 0))))
            decode.streams += self._streams
            decode.context_tokens += self._context_tokens
            decode.output_tokens += self._output_tokens
        if compute is not None:
            if compute is not decode:
                self._arriving.append((compute, self.tokens))
                compute.guests += 1
            if not compute.queue:
                compute.head_since_s = now_s
            compute.queue[self] = None
            compute.prefill_tokens += self.tokens
            compute.prefill_pairs += self.pairs
        for account, tokens in self._arriving:
            account.arriving_tokens += tokens
            account.state = None

    def produced(self, num_tokens: int, now_s: float) -> None:
        """Output tokens arrived, so the prompt is computed too."""
        self._computed(now_s)
        done = min(num_tokens, self._output_tokens)
        self._output_tokens -= done
        self._context_tokens += num_tokens
        if self._decode is not None:
            self._decode.output_tokens -= done
            self._decode.context_tokens += num_tokens
            self._decode.state = None

    def release(self, now_s: float) -> None:
        """The request has ended there, in whatever way. Again and again does no harm."""
        self._computed(now_s)
        decode, self._decode = self._decode, None
        if decode is not None:
            decode.streams -= self._streams
            decode.context_tokens -= self._context_tokens
            decode.output_tokens -= self._output_tokens
            decode.state = None

    def _computed(self, now_s: float) -> None:
        """Off the queue."""
        compute, self._compute = self._compute, None
        if compute is not None:
            if next(iter(compute.queue)) is self:
                compute.head_since_s = now_s
            del compute.queue[self]
            compute.prefill_tokens -= self.tokens
            compute.prefill_pairs -= self.pairs
            compute.guests -= compute is not self._decode
        for account, tokens in self._arriving:
            account.arriving_tokens -= tokens
            account.state = None
        self._arriving.clear()


class Books:
    """All accounts, and what was learned about costs."""

    def __init__(self) -> None:
        self.model = CostModel()
        self._accounts: dict[str, Account] = {}

    def open(self, url: str, role: Role, revision: str = "", node: str = "") -> None:
        """A worker joins; work of a former one at this address is no longer its."""
        self._accounts[url] = Account(url, role, revision, node)

    def close(self, url: str) -> None:
        """A worker has left. Its bookings may still be released."""
        self._accounts.pop(url, None)
        self.model.forget(url)

    def describe(self, url: str, about: About) -> None:
        """A worker said what it is."""
        account = self._accounts.get(url)
        if account is not None and account.about != about:
            account.about, account.state = about, None

    def in_flight(self, url: str) -> tuple[int, int]:
        """Booked (streams, prompts) of a worker."""
        account = self._accounts[url]
        return account.streams, len(account.queue)

    def totals(self) -> dict[str, Totals]:
        """What is booked, by worker; those without work are left out."""
        totals = ((url, account.totals()) for url, account in self._accounts.items())
        return {url: booked for url, booked in totals if booked != NOTHING}

    def others(self, totals: Mapping[str, Totals]) -> None:
        """From now on the other routers have so much booked, by worker."""
        for url, account in self._accounts.items():
            booked = totals.get(url, NOTHING)
            if account.others != booked:
                account.others, account.state = booked, None

    def book(self, placement: Placement, request: PlacementRequest, now_s: float) -> Booking:
        """Counts a request's work on the workers that it was placed on."""
        _, cached = placement.relies_on(request)
        decode, computing = self._accounts.get(placement.decode), self._accounts.get(placement.computing)
        return Booking(decode, computing, request, cached, now_s)

    def observed(self, url: str, events: Events, now_s: float) -> int:
        """A frame of a worker's `/events`. How many of its timings were left out: they cannot be true, or are nothing
        like what others of its kind report."""
        account = self._accounts.get(url)
        if account is None:
            return 0
        if events.load is not None and events.load != account.load:
            account.load, account.state = events.load, None
        if not events.timings:
            return 0
        return self.model.stepped(url, account.about.kind, account.sampled(events.timings, now_s))

    def unheard(self, url: str) -> None:
        """A worker says nothing any more, or nothing that is believed: only what is booked there counts."""
        account = self._accounts.get(url)
        if account is not None:
            account.load = account.state = None

    def snapshot(self, ready: Iterable[str], now_s: float, *, waiting: int = 0) -> ClusterSnapshot:
        """Of the workers named, while so many requests wait in the router."""
        prefill: list[WorkerState] = []
        decode: list[WorkerState] = []
        for url in ready:
            account = self._accounts[url]
            (prefill if account.role == "prefill" else decode).append(self._state(account))
        model = self.model
        return ClusterSnapshot(
            prefill=tuple(prefill),
            decode=tuple(decode),
            links=model.links,
            alone_s=model.hops.usual[False],
            pair_s=model.hops.usual[True],
            reuse=model.reuse,
            waiting=waiting,
            now_s=now_s,
        )

    def _state(self, account: Account) -> WorkerState:
        cost = self.model.cost(account.url, account.about.kind)
        if account.state is None or account.state.cost is not cost:
            account.state = _state(account, cost)
        return account.state


def _state(account: Account, cost: StepCost) -> WorkerState:
    """What all routers have booked, and what the worker reports beyond that: work of direct callers, and of routers
    that nothing is heard of."""
    load, about = account.load or Load(), account.about
    booked = account.totals() + account.others if account.others != NOTHING else account.totals()
    reported = load.running + load.waiting
    foreign = max(0, reported - booked.streams - booked.guests)
    share = foreign / reported if foreign else 0.0
    is_decode = account.role == "decode"
    head = next(iter(account.queue), None)
    free_tokens = max(0, load.free_blocks * about.block_tokens - booked.arriving_tokens)
    return WorkerState(  # by position, in the order of its fields: by name takes 0.6 us more
        account.url,
        booked.prefill_tokens + round(share * load.prefill_tokens),
        booked.output_tokens,
        f"{account.revision} {about.layout}".strip(),
        account.role,
        about.kind,
        account.node,
        booked.prompts + (0 if is_decode else foreign),
        booked.prefill_pairs,
        head.tokens if head else 0,
        head.pairs if head else 0,
        account.head_since_s,
        booked.streams + (foreign if is_decode else 0),
        about.max_streams,
        booked.context_tokens + round(share * load.context_tokens),
        load.num_blocks * about.block_tokens,
        free_tokens,
        min(free_tokens, load.evictable_blocks * about.block_tokens),
        about.block_tokens,
        about.step_tokens,
        cost,
    )
