"""Where requests wait for their turn.

A request goes straight through while nobody waits and a worker has room for it. Else it waits here, in fair order, or
is refused at once (admission.py); each time work ends somewhere, and now and then, the fairest ones try again to be
placed (tries.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from penstock.router.flow.admission import Admission, Bounds, Claim
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import Entry, FairQueue
from penstock.router.flow.tenants import Tenant
from penstock.router.flow.tries import Round, Tried, Tries
from penstock.router.flow.turns import Busy, Turn
from penstock.router.flow.usage import Usage

POLL_S = 0.05
"""While somebody waits, workers are looked at so often: prompts progress without telling."""
_HEAVY, _HEAVY_WITH_MOST = 2.0, 1.0
"""Times what others had on average lately, from which on a tenant is heavy."""
MOST_SEEN = 32
"""So many requests are looked at, until one can go."""


class Passed(Protocol):
    """What a request gets, as far as the gate knows it."""

    @property
    def work(self) -> float:
        """In tokens, as charged to the tenant."""
        ...


T = TypeVar("T", bound=Passed)

Attempt: TypeAlias = Callable[[Turn], T | Busy | None]
"""Places the request; None when no worker is there at all."""


@dataclass(slots=True, eq=False)
class _Waiter(Generic[T]):
    claim: Claim
    attempt: Attempt[T]
    tried: Tried
    result: "asyncio.Future[T | None]"


class _Rank(NamedTuple):
    """Of a tenant; smaller goes first, here and as Claim.wire_priority on workers."""

    priority: int
    heavy: bool


@dataclass(slots=True)
class _Ranks:
    """Of those who wait."""

    of: dict[str, _Rank] = field(default_factory=dict)
    """By tenant."""
    waiting: Counter[_Rank] = field(default_factory=Counter)
    """Their requests."""


class Gate(Generic[T]):
    """One per router."""

    def __init__(
        self,
        *,
        has_room: Callable[[Turn], bool],
        undo: Callable[[T], None],
        bounds: Bounds,
        on_left: Callable[[float], object] = lambda _: None,
        on_refused: Callable[[str], object] = lambda _: None,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`has_room` and `stopwatch` as Tries takes them; `undo` takes back a placement whose request is gone.
        `on_left` is told how long each waited, `on_refused` the code of each refusal."""
        self._undo = undo
        self._bounds = bounds
        self._on_left = on_left
        self._queue: FairQueue[_Waiter[T]] = FairQueue()
        self._admission = Admission(self._queue, longest_wait_s=bounds.seconds, on_refused=on_refused)
        self._tries = Tries(has_room, stopwatch)
        self._usage = Usage()
        self._ranks: _Ranks | None = None
        """Until somebody comes, goes, or has had more."""
        self._usual_work = 1000.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def work(self) -> float:
        """Waiting, in tokens."""
        return self._queue.work

    def waiting(self, claim: Claim) -> int:
        """How many wait that do not go behind such a request."""
        return self._turn(claim, self._ranked(), num_own=0).waiting

    def check(self, arrival: Arrival) -> None:
        """Refuses at once, before its body is parsed, what would wait too long. Raises RetryableError."""
        if not len(self._queue):
            return
        now = self._now()
        claim = Claim(arrival, 0, self._usual_work, arrival.began + arrival.patience.longest_s)
        turn = replace(self._turn(claim, self._ranked(), num_own=0), kept=self._tries.kept)
        if self._tries.kept_from(turn, now) is not None:
            return  # it may well go at once, whoever waits
        self._admission.check(self._admission.outlook(arrival, now), claim, 0.0, now)

    async def enter(self, claim: Claim, attempt: Attempt[T]) -> T | None:
        """Returns what `attempt` gave when its turn had come. Raises what it raised, or RetryableError."""
        now = self._now()
        tenant = claim.tenant
        self._usual_work += 0.05 * (claim.work - self._usual_work)
        busy, hope = None, False
        if not len(self._queue):
            turn = replace(self._turn(claim, _Ranks(), num_own=0), remaining_s=claim.deadline - now)
            outcome = attempt(turn)
            if not isinstance(outcome, Busy):
                if outcome is not None:
                    self.charge(tenant, outcome.work)
                return outcome
            busy, hope = outcome, self._tries.has_room(turn)
        outlook = self._admission.outlook(claim.arrival, now)
        waiter = _Waiter(claim, attempt, Tried(now), asyncio.get_running_loop().create_future())
        claim.arrival.seal()
        entry = self._queue.push(tenant, waiter, claim.work, claim.priority, claim.prompt_tokens)
        self._ranks = None
        self._admission.speeds.waits(tenant, now)
        try:
            if busy is None:
                self._let_through(now)
            else:
                self._tries.in_vain(waiter.tried, busy, now, hope=hope)
            if not waiter.result.done():
                if waiter.tried.could_go_since is None:
                    self._admission.check(outlook, claim, waiter.tried.compute_s, now)
                self._make_room(now)
                self._set_timer()
            return await waiter.result
        except BaseException:
            self._remove(entry)
            if waiter.result.done() and not waiter.result.cancelled() and waiter.result.exception() is None:
                placed = waiter.result.result()
                if placed is not None:
                    self._undo(placed)  # it left while it was let through
            raise

    def charge(self, tenant: Tenant, work: float) -> None:
        """Work begins for `tenant`."""
        self._queue.charge(tenant, work)
        self._usage.add(tenant, work, self._now())
        self._ranks = None

    def done(self, tenant: Tenant, more_work: float) -> None:
        """A request has ended; it was `more_work` than what was charged. There may be room now."""
        self._queue.correct(tenant, more_work)
        self._usage.add(tenant, more_work, self._now())
        self._ranks = None
        self.changed()

    def changed(self) -> None:
        """There may be room now."""
        if len(self._queue):
            self._let_through(self._now())

    def _let_through(self, now: float) -> None:
        """All that may go now, fairest first."""
        while self._may_have_room() and self._let_one_through(now):
            pass

    def _may_have_room(self) -> bool:
        """A quick look, as the first one would have it if no picker had put it behind those that follow."""
        first = next(iter(self._queue.first(1)), None)
        return first is not None and self._tries.has_room(Turn(priority=first.item.claim.own_priority(heavy=False)))

    def _let_one_through(self, now: float) -> bool:
        look, ranks = Round(self._tries, now), self._ranked()
        for entry in sorted(self._queue.first(MOST_SEEN), key=lambda each: ranks.of[each.tenant.name]):
            waiter = entry.item
            if waiter.result.done():  # its task was cancelled, and has not run since
                self._remove(entry)
                return True
            turn = look.turn(waiter.tried, self._turn(waiter.claim, ranks, num_own=1), waiter.claim.deadline - now)
            if turn is None:
                continue
            began_s = self._tries.stopwatch()
            outcome: T | Busy | None
            try:
                outcome = waiter.attempt(turn)
            except Exception as error:  # raised where that request is, not where this work ended
                self._remove(entry)
                waiter.result.set_exception(error)
                return True
            if isinstance(outcome, Busy):
                look.in_vain(waiter.tried, outcome, self._tries.stopwatch() - began_s)
                continue
            if outcome is not None:
                self._admission.speeds.left(entry.tenant, entry.work, now)
                self._on_left(now - waiter.tried.since)
            self._remove(entry)
            if outcome is not None:
                self.charge(entry.tenant, entry.work)
            waiter.result.set_result(outcome)
            return True
        look.end()
        return False

    def _turn(self, claim: Claim, ranks: _Ranks, *, num_own: int) -> Turn:
        """What kind of request `claim` is; `num_own` of those that wait are this itself.

        The line of those that go behind others makes none of these stand in line. But any other line does: else those
        that have one request each would leave no room to one that has several.
        """
        rank = ranks.of.get(claim.tenant.name) or self._rank(claim.tenant)
        waiting = sum(number for each, number in ranks.waiting.items() if each <= rank)
        waiting -= self._queue.later(claim.tenant, claim.priority)
        priority = claim.wire_priority(heavy=rank.heavy)
        return Turn(in_line=waiting > num_own, waiting=waiting, heavy=rank.heavy, priority=priority)

    def _ranked(self) -> _Ranks:
        if self._ranks is None:
            self._ranks = ranks = _Ranks()
            for tenant in self._queue.tenants():
                rank = ranks.of[tenant.name] = self._rank(tenant)
                ranks.waiting[rank] += self._queue.waiting(tenant)
        return self._ranks

    def _rank(self, tenant: Tenant) -> _Rank:
        """A tenant is heavy when it has had far more than others, or has most that waits and has had more."""
        has_most = 2 * self._queue.waiting(tenant) > len(self._queue) + 1
        is_heavy = self._usage.is_heavy(tenant, times=_HEAVY_WITH_MOST if has_most else _HEAVY)
        return _Rank(tenant.priority, is_heavy)

    def _remove(self, entry: Entry[_Waiter[T]]) -> None:
        """It no longer waits."""
        self._queue.remove(entry)
        self._ranks = None
        self._tries.gone(entry.item.tried)
        if not self._queue.waiting(entry.tenant):
            self._admission.speeds.empty(entry.tenant, nobody=not len(self._queue))

    def _make_room(self, now: float) -> None:
        """The queue is bounded; who came back as told is spared if anybody else of its tenant waits, or else while no
        more than twice as many wait as may: the time it was told was an estimate."""
        queue, most = self._queue, self._bounds
        while (is_long := queue.tokens > most.prompt_tokens) or len(queue) > most.requests:
            entry = queue.surplus(in_tokens=is_long, spare=lambda waiter: waiter.claim.arrival.came_back)
            assert entry is not None
            waiter = entry.item
            if waiter.claim.arrival.came_back and not is_long and len(queue) <= 2 * most.requests:
                return
            self._remove(entry)
            said = f"prompts of {most.prompt_tokens} tokens" if is_long else f"{len(queue)} requests"
            error = self._admission.crowded_out(waiter.claim.arrival, entry.work, said, now)
            if not waiter.result.done():  # else its task was cancelled, and has not run since
                waiter.result.set_exception(error)

    def _set_timer(self) -> None:
        if self._timer is None and len(self._queue):
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.changed()
        finally:  # whatever was wrong, they still wait
            self._set_timer()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
