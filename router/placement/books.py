"""What the router has in flight on each worker, as the snapshot that policies see.

Pure: every call is told the time. The router's Cluster keeps it with real workers, the simulator with modelled ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.protocol import Events, Load, StepTiming
from penstock.router.placement.costs import StepCost, attention_pairs
from penstock.router.placement.model import CostModel
from penstock.router.placement.totals import NOTHING, Totals
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Role, WorkerState

_MOST_STATES = 32
"""Of one worker at once. A client may name any priority, but a look at those who wait sees so many (gate.MOST_SEEN)."""
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
class Line:
    """Prompts of one priority that a worker is to compute, first come first served."""

    prompts: dict["Booking", None] = field(default_factory=dict)
    tokens: int = 0
    pairs: int = 0
    head_since_s: float = 0.0
    """When its first one became the first, moved by the time that more urgent lines have taken since."""
    held_since_s: float = 0.0
    """When a more urgent line began, after a time without one."""

    def add(self, booking: "Booking") -> None:
        self.prompts[booking] = None
        self.tokens += booking.tokens
        self.pairs += booking.pairs

    def remove(self, booking: "Booking", now_s: float) -> None:
        if next(iter(self.prompts)) is booking:
            self.head_since_s = now_s
        del self.prompts[booking]
        self.tokens -= booking.tokens
        self.pairs -= booking.pairs


_NOBODY = Line()


@dataclass(slots=True, eq=False)
class Account:
    """One worker's entry."""

    url: str
    role: Role
    revision: str = ""
    node: str = ""
    about: About = field(default_factory=About)
    pairing: str = ""
    """Workers pair when this is equal: revision, and layout of the KV cache."""
    load: Load | None = None
    """What it last said that it is doing."""
    lines: dict[int, Line] = field(default_factory=dict)
    """By priority; none is empty."""
    guests: int = 0
    """Prompts in them whose answers other workers stream."""
    streams: dict[int, int] = field(default_factory=dict)
    """By priority."""
    context_tokens: int = 0
    output_tokens: int = 0
    arriving_tokens: int = 0
    """KV of prompts that are booked and not computed yet: the worker's own figures may not count it."""
    others: Totals = NOTHING
    """What the other routers have booked."""
    steps_left: float = STEPS_PER_S
    steps_at_s: float = 0.0
    states: dict[float, WorkerState] = field(default_factory=dict)
    """As given, by priority, until something changes."""

    def sampled(self, timings: Sequence[StepTiming], now_s: float) -> Sequence[StepTiming]:
        """Those of a worker's steps that costs are learned from."""
        self.steps_left = min(STEPS_PER_S, self.steps_left + STEPS_PER_S * (now_s - self.steps_at_s))
        self.steps_at_s = now_s
        taken = timings[: int(self.steps_left)]
        self.steps_left -= len(taken)
        return taken

    def queue(self, booking: "Booking", priority: int, now_s: float) -> None:
        """A prompt joins the line of its priority."""
        if priority not in self.lines:
            first = min(self.lines, default=priority)
            self.lines[priority] = Line(head_since_s=now_s, held_since_s=now_s)
            if priority < first:
                self.lines[first].held_since_s = now_s
        self.lines[priority].add(booking)

    def unqueue(self, booking: "Booking", priority: int, now_s: float) -> None:
        """It leaves its line."""
        line = self.lines[priority]
        line.remove(booking, now_s)
        if line.prompts:
            return
        del self.lines[priority]
        first = min(self.lines, default=priority)
        if first > priority:  # while it was held up nothing of it was computed
            held = self.lines[first]
            held.head_since_s += now_s - max(held.head_since_s, held.held_since_s)

    def prompts_before(self, priority: float) -> Line:
        """The prompts that do not go behind one of this priority, in one line. To be read only."""
        if not self.lines:
            return _NOBODY
        if len(self.lines) == 1:
            [(own, line)] = self.lines.items()
            return line if own <= priority else _NOBODY
        lines = [self.lines[each] for each in sorted(self.lines) if each <= priority]
        prompts = {each: None for line in lines for each in line.prompts}
        tokens, pairs = sum(line.tokens for line in lines), sum(line.pairs for line in lines)
        return Line(prompts, tokens, pairs, head_since_s=lines[0].head_since_s if lines else 0.0)

    def behind(self, priority: float) -> tuple[int, int, int]:
        """Streams of requests that go behind one of this priority, and tokens and pairs of their prompts."""
        if not (_any_over(priority, self.streams) or _any_over(priority, self.lines)):
            return 0, 0, 0
        streams = sum(number for each, number in self.streams.items() if each > priority)
        lines = [line for each, line in self.lines.items() if each > priority]
        return streams, sum(line.tokens for line in lines), sum(line.pairs for line in lines)

    def totals(self, line: Line) -> Totals:
        """What is booked here, but of prompts to compute only those in `line`; `guests` are of all."""
        return Totals(
            prefill_tokens=line.tokens,
            prefill_pairs=line.pairs,
            prompts=len(line.prompts),
            guests=self.guests,
            streams=sum(self.streams.values()),
            context_tokens=self.context_tokens,
            output_tokens=self.output_tokens,
            arriving_tokens=self.arriving_tokens,
        )


def _any_over(priority: float, priorities: Iterable[int]) -> bool:
    """A loop takes a fifth of the time of max(), here: most workers have one priority."""
    for each in priorities:  # noqa: SIM110
        if each > priority:
            return True
    return False


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
        self._priority = request.priority
        self._arriving: list[tuple[Account, int]] = []
        if decode is not None:
            self._arriving.append((decode, max(0, prompt - request.cached_tokens.get(decode.url, 0))))
            decode.streams[self._priority] = decode.streams.get(self._priority, 0) + self._streams
            decode.context_tokens += self._context_tokens
            decode.output_tokens += self._output_tokens
        if compute is not None:
            if compute is not decode:
                self._arriving.append((compute, self.tokens))
                compute.guests += 1
            compute.queue(self, self._priority, now_s)
        for account, tokens in self._arriving:
            account.arriving_tokens += tokens
            account.states.clear()

    def produced(self, num_tokens: int, now_s: float) -> None:
        """Output tokens arrived, so the prompt is computed too."""
        self._computed(now_s)
        done = min(num_tokens, self._output_tokens)
        self._output_tokens -= done
        self._context_tokens += num_tokens
        if self._decode is not None:
            self._decode.output_tokens -= done
            self._decode.context_tokens += num_tokens
            self._decode.states.clear()

    def release(self, now_s: float) -> None:
        """The request has ended there, in whatever way. Again and again does no harm."""
        self._computed(now_s)
        decode, self._decode = self._decode, None
        if decode is not None:
            decode.streams[self._priority] -= self._streams
            if not decode.streams[self._priority]:
                del decode.streams[self._priority]
            decode.context_tokens -= self._context_tokens
            decode.output_tokens -= self._output_tokens
            decode.states.clear()

    def _computed(self, now_s: float) -> None:
        """Off the queue."""
        compute, self._compute = self._compute, None
        if compute is not None:
            compute.unqueue(self, self._priority, now_s)
            compute.guests -= compute is not self._decode
        for account, tokens in self._arriving:
            account.arriving_tokens -= tokens
            account.states.clear()
        self._arriving.clear()


class Books:
    """All accounts, and what was learned about costs."""

    def __init__(self) -> None:
        self.model = CostModel()
        self._accounts: dict[str, Account] = {}

    def open(self, url: str, role: Role, revision: str = "", node: str = "") -> None:
        """A worker joins; work of a former one at this address is no longer its."""
        self._accounts[url] = Account(url, role, revision, node, pairing=revision)

    def close(self, url: str) -> None:
        """A worker has left. Its bookings may still be released."""
        self._accounts.pop(url, None)
        self.model.forget(url)

    def describe(self, url: str, about: About) -> None:
        """A worker said what it is."""
        account = self._accounts.get(url)
        if account is not None and account.about != about:
            account.about, account.pairing = about, f"{account.revision} {about.layout}".strip()
            account.states.clear()

    def in_flight(self, url: str) -> tuple[int, int]:
        """Booked (streams, prompts) of a worker."""
        account = self._accounts[url]
        return sum(account.streams.values()), len(account.prompts_before(math.inf).prompts)

    def totals(self) -> dict[str, Totals]:
        """What is booked, by worker; those without work are left out."""
        totals = ((url, account.totals(account.prompts_before(math.inf))) for url, account in self._accounts.items())
        return {url: booked for url, booked in totals if booked != NOTHING}

    def others(self, totals: Mapping[str, Totals]) -> None:
        """From now on the other routers have so much booked, by worker."""
        for url, account in self._accounts.items():
            booked = totals.get(url, NOTHING)
            if account.others != booked:
                account.others = booked
                account.states.clear()

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
            account.load = events.load
            account.states.clear()
        if not events.timings:
            return 0
        return self.model.stepped(url, account.about.kind, account.sampled(events.timings, now_s))

    def unheard(self, url: str) -> None:
        """A worker says nothing any more, or nothing that is believed: only what is booked there counts."""
        account = self._accounts.get(url)
        if account is not None:
            account.load = None
            account.states.clear()

    def snapshot(
        self, ready: Iterable[str], now_s: float, *, waiting: int = 0, priority: float = math.inf
    ) -> ClusterSnapshot:
        """Of the workers named, while so many requests wait in the router, as a request of this priority finds them:
        prompts that go behind it do not count."""
        prefill: list[WorkerState] = []
        decode: list[WorkerState] = []
        for url in ready:
            account = self._accounts[url]
            (prefill if account.role == "prefill" else decode).append(self._state(account, priority))
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

    def _state(self, account: Account, priority: float) -> WorkerState:
        cost = self.model.cost(account.url, account.about.kind)
        state = account.states.get(priority)
        if state is None or state.cost is not cost:
            if len(account.states) == _MOST_STATES:
                account.states.clear()
            state = account.states[priority] = _state(account, cost, priority)
        return state


def _state(account: Account, cost: StepCost, priority: float) -> WorkerState:
    """What all routers have booked, and what the worker reports beyond that: work of direct callers, and of routers
    that nothing is heard of."""
    load, about = account.load or Load(), account.about
    line = account.prompts_before(priority)
    booked = account.totals(line) + account.others if account.others is not NOTHING else account.totals(line)
    reported = load.running + load.waiting
    foreign = reported - booked.streams - booked.guests
    prompts, streams = booked.prompts, booked.streams
    prefill_tokens, context_tokens = booked.prefill_tokens, booked.context_tokens
    if foreign > 0:
        prefill_tokens += round(foreign / reported * load.prefill_tokens)
        context_tokens += round(foreign / reported * load.context_tokens)
        if account.role == "decode":
            streams += foreign
        else:
            prompts += foreign
    head = next(iter(line.prompts), None)
    free_tokens = load.free_blocks * about.block_tokens - booked.arriving_tokens
    free_tokens = free_tokens if free_tokens > 0 else 0
    evictable_tokens = load.evictable_blocks * about.block_tokens
    return WorkerState(  # by position, in the order of its fields: by name takes 0.6 us more
        account.url,
        prefill_tokens,
        booked.output_tokens,
        account.pairing,
        account.role,
        about.kind,
        account.node,
        prompts,
        booked.prefill_pairs,
        head.tokens if head else 0,
        head.pairs if head else 0,
        line.head_since_s,
        streams,
        about.max_streams,
        context_tokens,
        load.num_blocks * about.block_tokens,
        free_tokens,
        evictable_tokens if evictable_tokens < free_tokens else free_tokens,
        about.block_tokens,
        about.step_tokens,
        cost,
        *account.behind(priority),
    )
