"""Where requests wait for their turn, and where those are refused at once that would wait too long.

A request goes straight through while nobody waits and a worker has room for it. Else it waits here, in fair order; each
time work ends somewhere, and now and then, the fairest ones try again to be placed. One whose best worker is full does
not hold up those behind it.

What would wait longer than it may is refused with the time after which it will be let in (promises.py). The time is the
work ahead of it over the work that has lately been let through per second, so it follows whatever limits the workers:
their prompts, their memory or their answers.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from penstock.errors import Overloaded, RateLimited, RetryableError
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import Entry, FairQueue
from penstock.router.flow.promises import Promises
from penstock.router.flow.tenants import ANYONE, Tenant
from penstock.router.flow.turns import Busy, Turn
from penstock.router.flow.usage import Usage

POLL_S = 0.05
"""While somebody waits, workers are looked at so often: prompts progress without telling."""
_MOST_TRIED = 8
"""So many requests are tried at a time, until one can go."""
_MEMORY_S = 10.0
"""Over which the speed of the queue is averaged."""
_FIRST_LEFT = 4
"""So many must have left the queue before its speed is believed."""


class Passed(Protocol):
    """What a request gets, as far as the gate knows it."""

    @property
    def work(self) -> float:
        """In tokens, as charged to the tenant."""
        ...


T = TypeVar("T", bound=Passed)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one prompt asks for, and for whom."""

    arrival: Arrival
    priority: int
    """Smaller is first among the tenant's own."""
    work: float
    """As expected, in tokens."""
    deadline: float

    @property
    def tenant(self) -> Tenant:
        return self.arrival.tenant

    def wire_priority(self, *, heavy: bool) -> int:
        """For the worker's own order. With several tenants those that have had most lately go last there too."""
        return self.priority if self.tenant is ANYONE else 2 * self.tenant.priority + heavy


Attempt: TypeAlias = Callable[[Turn], T | Busy | None]
"""Places the request; None when no worker is there at all."""


@dataclass(slots=True, eq=False)
class _Waiter(Generic[T]):
    claim: Claim
    attempt: Attempt[T]
    since: float
    result: "asyncio.Future[T | None]"
    could_go_since: float | None = None
    compute_s: float = 0.0


@dataclass(slots=True)
class Speed:
    """How fast the queue empties: work per second, over the time in which somebody waited."""

    _work: float = 0.0
    _seconds: float = 0.0
    _num: int = 0
    _since: float | None = None
    """When somebody was last let through, or began to wait."""
    _is_first: bool = True

    def waits(self, now_s: float) -> None:
        """Somebody waits."""
        if self._since is None:
            self._since, self._is_first = now_s, True

    def left(self, work: float, now_s: float) -> None:
        """One that waited was let through. The first one's time tells of what the workers had before that."""
        passed_s = now_s - self._since if self._since is not None else 0.0
        self._since = now_s
        if self._is_first:
            self._is_first = False
            return
        kept = math.exp(-passed_s / _MEMORY_S)
        self._work = self._work * kept + work
        self._seconds = self._seconds * kept + passed_s
        self._num += 1

    def empty(self) -> None:
        """Nobody waits."""
        self._since = None

    def wait_s(self, work: float, now_s: float) -> float:
        """Until so much work is let through; 0 as long as the speed is unknown."""
        if self._num < _FIRST_LEFT or not self._work:
            return 0.0
        stalled_s = now_s - self._since if self._since is not None else 0.0
        return work * max(self._seconds, stalled_s) / self._work


Refuse: TypeAlias = Callable[[float], None]


class Ahead(NamedTuple):
    """What is let through before a request."""

    work: float
    wait_s: float


class Gate(Generic[T]):
    """One per router."""

    def __init__(
        self,
        *,
        has_room: Callable[[], bool],
        undo: Callable[[T], None],
        most_waiting: int,
        longest_wait_s: float,
        on_left: Callable[[float], object] = lambda _: None,
        on_refused: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`has_room` is a quick look whether any attempt is worth while; `undo` takes back a placement whose request is
        gone. `on_left` is told how long each waited, `on_refused` the code of each refusal."""
        self._has_room = has_room
        self._undo = undo
        self._most_waiting = most_waiting
        self._longest_wait_s = longest_wait_s
        self._on_left = on_left
        self._on_refused = on_refused
        self._queue: FairQueue[_Waiter[T]] = FairQueue()
        self._speed = Speed()
        self._speeds: dict[str, Speed] = {}
        """Of each tenant's own line: others that come later may still be before it."""
        self._promises: dict[str, Promises] = {}
        self._usage = Usage()
        self._usual_work = 1000.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def work(self) -> float:
        """Waiting, in tokens."""
        return self._queue.work

    def check(self, arrival: Arrival) -> None:
        """Refuses at once, before its body is parsed, what would wait too long. Raises RetryableError."""
        if len(self._queue):
            self._admit(arrival, self._usual_work, arrival.began + arrival.patience.longest_s, self._now())(0.0)

    async def enter(self, claim: Claim, attempt: Attempt[T]) -> T | None:
        """Returns what `attempt` gave when its turn had come. Raises what it raised, or RetryableError."""
        now = self._now()
        tenant = claim.tenant
        self._usual_work += 0.05 * (claim.work - self._usual_work)
        if not len(self._queue):
            outcome = attempt(Turn(heavy=self._usage.is_heavy(tenant, now), remaining_s=claim.deadline - now))
            if not isinstance(outcome, Busy):
                if outcome is not None:
                    self._charge(tenant, outcome.work, now)
                return outcome
        refuse = self._admit(claim.arrival, claim.work, claim.deadline, now)
        waiter = _Waiter(claim, attempt, now, asyncio.get_running_loop().create_future())
        claim.arrival.seal()
        entry = self._queue.push(tenant, waiter, claim.work, claim.priority)
        for speed in self._speeds_of(tenant):
            speed.waits(now)
        try:
            self._let_through(now)
            if not waiter.result.done():
                refuse(waiter.compute_s)
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

    def done(self, tenant: Tenant, more_work: float) -> None:
        """A request has ended; it was `more_work` than what was charged. There may be room now."""
        self._queue.correct(tenant, more_work)
        self.changed()

    def changed(self) -> None:
        """There may be room now."""
        if len(self._queue):
            self._let_through(self._now())

    def _let_through(self, now: float) -> None:
        """All that may go now, fairest first."""
        while len(self._queue) and self._has_room() and self._let_one_through(now):
            pass

    def _remove(self, entry: Entry[_Waiter[T]]) -> None:
        """It no longer waits."""
        self._queue.remove(entry)
        if not len(self._queue):
            self._speed.empty()
        if not self._queue.waiting(entry.tenant):
            self._speeds_of(entry.tenant)[1].empty()

    def _let_one_through(self, now: float) -> bool:
        hopeless: set[tuple[bool, bool]] = set()
        for entry in self._queue.first(_MOST_TRIED):
            waiter = entry.item
            if waiter.result.done():  # its task was cancelled, and has not run since
                self._remove(entry)
                return True
            turn = self._turn(entry, now)
            if (turn.in_line, turn.heavy) in hopeless:
                continue
            outcome: T | Busy | None
            try:
                outcome = waiter.attempt(turn)
            except Exception as error:  # raised where that request is, not where this work ended
                self._remove(entry)
                waiter.result.set_exception(error)
                return True
            if isinstance(outcome, Busy):
                waiter.compute_s = outcome.compute_s
                if not outcome.could_go:
                    hopeless.add((turn.in_line, turn.heavy))  # no worker has room for others of its kind
                elif waiter.could_go_since is None:
                    waiter.could_go_since = now
                continue
            if outcome is None:
                self._remove(entry)
            else:
                for speed in self._speeds_of(entry.tenant):
                    speed.left(entry.work, now)
                self._remove(entry)
                self._charge(entry.tenant, entry.work, now)
                self._on_left(now - waiter.since)
            waiter.result.set_result(outcome)
            return True
        return False

    def _speeds_of(self, tenant: Tenant) -> tuple[Speed, Speed]:
        return self._speed, self._speeds.setdefault(tenant.name, Speed())

    def _turn(self, entry: Entry[_Waiter[T]], now: float) -> Turn:
        since = entry.item.could_go_since
        return Turn(
            is_later=True,
            in_line=self._queue.waiting(entry.tenant) > 1,
            heavy=self._usage.is_heavy(entry.tenant, now),
            waited_s=0.0 if since is None else now - since,
            remaining_s=entry.item.claim.deadline - now,
        )

    def _charge(self, tenant: Tenant, work: float, now: float) -> None:
        self._queue.charge(tenant, work)
        self._usage.add(tenant, work, now)

    def _ahead(self, arrival: Arrival, now: float, *, promised: bool) -> Ahead:
        """Of those who wait, and with `promised` of those who are expected to come back."""
        tenant = arrival.tenant
        expected: dict[str, float] = {}
        if promised:
            expected = {name: promises.amount(now) for name, promises in self._promises.items() if len(promises)}
        work = self._queue.ahead_of(tenant, expected)
        own = self._queue.work_of(tenant) + expected.get(tenant.name, 0.0)
        of_all, of_tenant = self._speeds_of(tenant)
        return Ahead(work, max(of_all.wait_s(work, now), of_tenant.wait_s(own, now)))

    def _admit(self, arrival: Arrival, work: float, deadline: float, now: float) -> Refuse:
        """Decides by what is ahead now. Returns what refuses the request, given the seconds that it takes to compute,
        if it cannot have its first token in time."""
        promises = self._promises.get(arrival.tenant.name)
        if promises is not None and len(promises) and not arrival.came_back:
            arrival.came_back = promises.redeem(arrival.digest(), now)
        waiting = self._ahead(arrival, now, promised=False)
        with_promised = waiting if arrival.came_back else self._ahead(arrival, now, promised=True)

        def refuse(compute_s: float) -> None:
            may_s = max(0.0, deadline - now - compute_s)
            ahead = waiting
            if not arrival.came_back:
                may_s = min(may_s, self._longest_wait_s)
                # Those who were told to come back have their place; but while so few wait, there is enough for all.
                ahead = with_promised if waiting.wait_s > may_s / 2 else waiting
            if ahead.wait_s > may_s:
                said = (
                    f"{ahead.work:.0f} tokens of work are ahead of this request, about {ahead.wait_s:.3g} s; "
                    f"it may wait {may_s:.3g} s"
                )
                raise self._refusal(arrival, work, ahead.wait_s - may_s, said, now)

        return refuse

    def _make_room(self, now: float) -> None:
        """The queue is bounded: the last of who has most waiting makes room."""
        while len(self._queue) > self._most_waiting:
            entry = self._queue.longest()
            assert entry is not None
            self._remove(entry)
            waiter = entry.item
            wait_s = max(1.0, self._ahead(waiter.claim.arrival, now, promised=True).wait_s)
            said = f"{self._most_waiting} requests wait already"
            waiter.result.set_exception(self._refusal(waiter.claim.arrival, entry.work, wait_s, said, now))

    def _refusal(self, arrival: Arrival, work: float, wait_s: float, said: str, now: float) -> RetryableError:
        """The error, with a time after which the same request will be let in."""
        tenant = arrival.tenant
        promises = self._promises.setdefault(tenant.name, Promises())
        wait_s = promises.make(arrival.digest(), work, wait_s, now)
        kind: type[RetryableError] = Overloaded
        if tenant is not ANYONE and 2 * self._queue.work_of(tenant) >= self._queue.work:
            kind, said = RateLimited, f"{tenant.name} asks for more than its share: {said}"
        self._on_refused(kind.code)
        return kind(said, retry_after_s=wait_s)

    def _set_timer(self) -> None:
        if self._timer is None and len(self._queue):
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.changed()
        self._set_timer()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
