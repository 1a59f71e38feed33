"""Where requests wait for their turn.

A request goes straight through while nobody waits and a worker has room for it. Else it waits here, in fair order, or is
refused at once (admission.py); each time work ends somewhere, and now and then, the fairest ones try again to be placed.
One whose best worker is full does not hold up those behind it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from penstock.router.flow.admission import Admission, Claim
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import Entry, FairQueue
from penstock.router.flow.tenants import Tenant
from penstock.router.flow.turns import Busy, Turn
from penstock.router.flow.usage import Usage

POLL_S = 0.05
"""While somebody waits, workers are looked at so often: prompts progress without telling."""
_MOST_TRIED = 8
"""So many requests are tried at a time, until one can go."""


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
    since: float
    result: "asyncio.Future[T | None]"
    could_go_since: float | None = None
    compute_s: float = 0.0


class Gate(Generic[T]):
    """One per router."""

    def __init__(
        self,
        *,
        has_room: Callable[[Turn], bool],
        undo: Callable[[T], None],
        most_waiting: int,
        longest_wait_s: float,
        on_left: Callable[[float], object] = lambda _: None,
        on_refused: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`has_room` is a quick look whether any request of that kind might be placed: `Turn.in_line` and `Turn.heavy`
        say which. `undo` takes back a placement whose request is gone. `on_left` is told how long each waited,
        `on_refused` the code of each refusal."""
        self._has_room = has_room
        self._undo = undo
        self._most_waiting = most_waiting
        self._on_left = on_left
        self._queue: FairQueue[_Waiter[T]] = FairQueue()
        self._admission = Admission(self._queue, longest_wait_s=longest_wait_s, on_refused=on_refused)
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
            now = self._now()
            claim = Claim(arrival, 0, self._usual_work, arrival.began + arrival.patience.longest_s)
            self._admission.check(self._admission.outlook(arrival, now), claim, 0.0, now)

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
        outlook = self._admission.outlook(claim.arrival, now)
        waiter = _Waiter(claim, attempt, now, asyncio.get_running_loop().create_future())
        claim.arrival.seal()
        entry = self._queue.push(tenant, waiter, claim.work, claim.priority)
        self._admission.speeds.waits(tenant, now)
        try:
            self._let_through(now)
            if not waiter.result.done():
                self._admission.check(outlook, claim, waiter.compute_s, now)
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
        while self._let_one_through(now):
            pass

    def _let_one_through(self, now: float) -> bool:
        hopes: dict[tuple[bool, bool], bool] = {}
        for entry in self._queue.first(_MOST_TRIED):
            waiter = entry.item
            if waiter.result.done():  # its task was cancelled, and has not run since
                self._remove(entry)
                return True
            turn = self._turn(entry, now)
            kind = turn.in_line, turn.heavy
            if kind not in hopes:
                hopes[kind] = self._has_room(turn)
            if not hopes[kind]:
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
                    hopes[kind] = False  # no worker has room for others of its kind
                elif waiter.could_go_since is None:
                    waiter.could_go_since = now
                continue
            if outcome is not None:
                self._admission.speeds.left(entry.tenant, entry.work, now)
                self._on_left(now - waiter.since)
            self._remove(entry)
            if outcome is not None:
                self._charge(entry.tenant, entry.work, now)
            waiter.result.set_result(outcome)
            return True
        return False

    def _remove(self, entry: Entry[_Waiter[T]]) -> None:
        """It no longer waits."""
        self._queue.remove(entry)
        if not self._queue.waiting(entry.tenant):
            self._admission.speeds.empty(entry.tenant, nobody=not len(self._queue))

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

    def _make_room(self, now: float) -> None:
        """The queue is bounded: the last of who has most waiting makes room."""
        while len(self._queue) > self._most_waiting:
            entry = self._queue.longest()
            assert entry is not None
            self._remove(entry)
            waiter = entry.item
            error = self._admission.crowded_out(waiter.claim.arrival, entry.work, self._most_waiting, now)
            waiter.result.set_exception(error)

    def _set_timer(self) -> None:
        if self._timer is None and len(self._queue):
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.changed()
        self._set_timer()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
