"""One simulated router: its own books and its own view of the caches, a policy, and placing again after a loss.

What workers report reaches it after a delay. What it places itself it knows at once; what other routers place, only
when they share reservations, and then later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from penstock.protocol import Done, Events
from penstock.router.flow.room import Room
from penstock.router.flow.turns import Busy, Turn, take_turn
from penstock.router.placement.books import About, Booking, Books
from penstock.router.placement.journal import Decision, Journal
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest, Policy
from penstock.simulator.call import Call, Node, Report
from penstock.simulator.clock import Clock
from penstock.simulator.line import Line
from penstock.simulator.outcome import Outcome
from penstock.simulator.trace import BLOCK_TOKENS, TraceRequest
from penstock.simulator.view import CacheView
from penstock.simulator.worker import Worker

MAX_ATTEMPTS = 4

NewPolicy: TypeAlias = Callable[[Journal], Policy]
"""Makes a router's policy, which may look at that router's journal."""


class Router:
    """Places what arrives; `workers` are all there are, by URL, with their roles."""

    def __init__(
        self,
        clock: Clock,
        new_policy: NewPolicy,
        workers: Mapping[str, Worker],
        roles: Mapping[str, str],
        *,
        hop_s: float,
        ahead_s: float | None,
        share: Callable[["Stream", Placement, PlacementRequest], None],
    ) -> None:
        self.books = Books()
        self.journal = Journal(self.books.model)
        self.view = CacheView(tuple(workers))
        self.clock = clock
        self.hop_s = hop_s
        self.workers = workers
        self.share = share
        self.line = Line(clock, self._has_room)
        self._room = None if ahead_s is None else Room(ahead_s)
        self._policy = new_policy(self.journal)
        self._roles = roles
        self._ready: dict[str, None] = {}
        self._waiting: list[Stream] = []
        for url in workers:
            self.found(url)

    def arrive(self, request: TraceRequest) -> Outcome:
        """A request comes in. Its outcome is complete when the clock has nothing more to do."""
        stream = Stream(self, request)
        if self._room is None:
            stream.place()
        else:
            self.line.enter(stream.place)
        return stream.outcome

    def found(self, url: str) -> None:
        """A worker is ready: with an empty cache and no work."""
        kind = self.workers[url].kind
        self.books.open(url, "prefill" if self._roles[url] == "prefill" else "decode", node=url)
        about = About(kind.name, BLOCK_TOKENS, kind.step_tokens, max_streams=kind.max_sequences)
        self.books.describe(url, about)
        self._ready[url] = None
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.place()
        self.line.changed()

    def lost(self, url: str) -> None:
        """A worker is not to be chosen until it is found again."""
        if url in self._ready:
            del self._ready[url]
            self.view.forget(url)
            self.books.close(url)

    def heard(self, url: str, report: Report) -> None:
        """A frame of a worker's `/events`."""
        if url in self._ready:
            if report.removed:
                self.view.removed(url, report.removed)
            if report.stored:
                self.view.stored(url, [stored.hash for stored in report.stored])
            events = Events(generation="", sequence=0, load=report.load, timings=report.timings)
            self.books.observed(url, events, self.clock.now_s)

    def choose(self, name: str, request: PlacementRequest, turn: Turn | None) -> Decision | Busy | None:
        """Asks the policy, and notes what it said. With a `turn`, workers must also have room."""
        cluster = self._snapshot(turn.waiting if turn is not None else len(self.line))

        def choose(wanted: PlacementRequest) -> Placement | None:
            return self._policy.choose(wanted, cluster)

        if turn is None or self._room is None:
            found: Placement | Busy | None = choose(request)
        else:
            found = take_turn(choose, request, cluster, self._room, turn)
        return self.journal.placed(name, request, cluster, found) if isinstance(found, Placement) else found

    def _snapshot(self, waiting: int = 0) -> ClusterSnapshot:
        ready = sorted(self._ready) if len(self._ready) < len(self.workers) else self.workers
        return self.books.snapshot(ready, self.clock.now_s, waiting=waiting)

    def _has_room(self, turn: Turn) -> bool:
        """Whether any request of this kind might be placed."""
        assert self._room is not None
        limits = self._room.of(in_line=turn.in_line, heavy=turn.heavy)
        return limits.any(self._snapshot(), kept=turn.kept)

    def wait(self, stream: "Stream") -> None:
        """Until a worker is found."""
        self._waiting.append(stream)


@dataclass(eq=False)
class Stream:
    """One request from its arrival to its end, over all its attempts."""

    router: Router
    request: TraceRequest
    outcome: Outcome = field(init=False)
    bookings: list[Booking] = field(default_factory=list)
    """Of this attempt: our own, and those of routers that were told."""
    excluded: set[str] = field(default_factory=set)
    num_output: int = 0
    call: Call | None = None
    decision: Decision | None = None
    placed_s: float = 0.0

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.request)

    def place(self, turn: Turn | None = None) -> Busy | None:
        """On the best workers; with a `turn`, only where there is room. Who was under way before goes on at once."""
        router, now = self.router, self.router.clock.now_s
        hashes = self.request.hashes
        request = PlacementRequest(
            self.request.prompt_tokens + self.num_output,
            router.view.match(hashes),
            frozenset(self.excluded),
            router.books.model.output_tokens,
        )
        decision = router.choose(str(self.request.index), request, turn)
        if decision is None and self.excluded:
            self.excluded.clear()
            request = replace(request, excluded=frozenset())
            decision = router.choose(str(self.request.index), request, turn)
        if isinstance(decision, Busy):
            return decision
        if decision is None:
            router.wait(self)
            return None
        placement = decision.placement
        self.decision, self.placed_s = decision, now
        self.bookings = [router.books.book(placement, request, now)]
        router.share(self, placement, request)
        computing = placement.prefill or placement.decode
        router.view.stored(computing, hashes)
        self._note(placement, request)
        workers = router.workers
        self.call = call = Call(
            self.request,
            request.prompt_tokens,
            self,
            workers[placement.decode],
            workers[placement.prefill] if placement.prefill else None,
            workers[placement.source] if placement.source else None,
        )
        router.clock.after(router.hop_s, lambda: call.decode.generate(call))
        return None

    def _note(self, placement: Placement, request: PlacementRequest) -> None:
        outcome = self.outcome
        if not outcome.attempts:
            outcome.placed_s = self.placed_s
        outcome.attempts += 1
        outcome.decode, outcome.prefill = placement.decode, placement.prefill
        outcome.predicted_cached_tokens = request.cached_tokens.get(placement.prefill or placement.decode, 0)
        if placement.prediction is not None and outcome.attempts == 1:
            outcome.predicted_ttft_s = placement.prediction.ttft_s

    def first_token(self, cached_tokens: int) -> None:
        """Counted when it leaves the worker; it is at the router one hop later."""
        arrived_s = self.router.clock.now_s + self.router.hop_s
        if self.outcome.first_token_s is None:
            self.outcome.first_token_s = arrived_s
            self.outcome.cached_tokens = cached_tokens
        if self.decision is not None:
            self.router.journal.came_true(self.decision, arrived_s - self.placed_s, cached_tokens)
        self.produced(1)
        self.router.view.stored(self.outcome.decode, self.request.hashes)
        self.router.line.changed()

    def produced(self, count: int) -> None:
        self.num_output += count
        for booking in self.bookings:
            booking.produced(count, self.router.clock.now_s)

    def finished(self) -> None:
        self.outcome.finish_s = self.router.clock.now_s + self.router.hop_s
        self.release()
        call, decision = self.call, self.decision
        assert call is not None
        assert decision is not None
        pulled_blocks = call.pulled_tokens // BLOCK_TOKENS
        self.router.journal.finished(decision, Done(pulled_blocks=pulled_blocks, pulls=call.pulls, pull_s=call.pull_s))
        self.router.journal.answered(decision, self.request.output_tokens)
        self.router.line.changed()

    def lost(self, worker: Node) -> None:
        """Placed again, to go on after the last token that came."""
        self.release()
        self.router.lost(worker.url)
        self.excluded.add(worker.url)
        if self.outcome.attempts < MAX_ATTEMPTS:
            self.place()
        self.router.line.changed()

    def release(self) -> None:
        for booking in self.bookings:
            booking.release(self.router.clock.now_s)
        self.bookings = []
