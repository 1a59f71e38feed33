"""Who may join the queue: what would wait longer than it may is refused at once, with the time when it will be let in.

That time is the work ahead over the work that has lately been let through per second (speed.py), so it follows whatever
limits the workers: their prompts, their memory or their answers. It is kept (promises.py). Pure: every call is told the
time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock.errors import Overloaded, RateLimited, RetryableError
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.fair_queue import FairQueue
from penstock.router.flow.promises import Promises
from penstock.router.flow.speed import Speeds
from penstock.router.flow.tenants import ANYONE, Tenant

_LEAST_WAIT_S = 1.0
"""Of one that made room, and what a full queue takes at least: a burst fills it before its speed is known."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one prompt asks for, and for whom."""

    arrival: Arrival
    priority: int
    """Smaller is first among the tenant's own."""
    work: float
    """As expected, in tokens."""
    deadline: float
    prompt_tokens: int = 0
    """Cached or not."""

    @property
    def tenant(self) -> Tenant:
        return self.arrival.tenant

    def wire_priority(self, *, heavy: bool) -> int:
        """For the worker's own order. There too a tenant that has had more than others lately goes behind them; and who
        was put further behind by the picker before this router stays there."""
        own, picked = self.own_priority(heavy=heavy), self.arrival.picked
        return own if picked is None else max(own, picked.priority)

    def own_priority(self, *, heavy: bool) -> int:
        """The same, whatever a picker said."""
        return self.priority if self.tenant is ANYONE else 2 * self.tenant.priority + int(heavy)


class Bounds(NamedTuple):
    """What may wait at most."""

    requests: int
    prompt_tokens: int
    """Of all of them."""
    seconds: float
    """Of a newcomer, as predicted."""


class Ahead(NamedTuple):
    """What is let through before a request."""

    work: float
    wait_s: float


class Outlook(NamedTuple):
    """What a request finds before it."""

    waiting: Ahead
    with_promised: Ahead
    """And those who are expected to come back."""


class Admission:
    """Of one queue."""

    def __init__(
        self, queue: FairQueue[Any], *, longest_wait_s: float, on_refused: Callable[[str], object] = lambda _: None
    ) -> None:
        """`on_refused` is told the code of each refusal."""
        self.speeds = Speeds()
        self._queue = queue
        self._longest_wait_s = longest_wait_s
        self._on_refused = on_refused
        self._promises: dict[str, Promises] = {}
        self._open: dict[str, Promises] = {}
        """Those of them that are owed anything."""

    def outlook(self, arrival: Arrival, now_s: float) -> Outlook:
        """Of a request that has just come. If it comes as it was told to, the promise is kept with this."""
        promises = self._promises.get(arrival.tenant.name)
        if promises is not None and len(promises) and not arrival.came_back:
            arrival.came_back = promises.redeem(arrival.digest(), now_s)
        waiting = self._ahead(arrival.tenant, now_s, {})
        if arrival.came_back:
            return Outlook(waiting, waiting)
        return Outlook(waiting, self._ahead(arrival.tenant, now_s, self._promised(now_s)))

    def check(self, outlook: Outlook, claim: Claim, compute_s: float, now_s: float) -> None:
        """Raises RetryableError when the first token, which takes `compute_s` to compute, cannot come in time."""
        may_s = max(0.0, claim.deadline - now_s - compute_s)
        ahead = outlook.waiting
        if not claim.arrival.came_back:
            may_s = min(may_s, self._longest_wait_s)
            # Those who were told to come back have their place; but while so few wait, there is enough for all.
            ahead = outlook.with_promised if outlook.waiting.wait_s > may_s / 2 else outlook.waiting
        if ahead.wait_s > may_s:
            said = (
                f"{ahead.work:.0f} tokens of work are ahead of this request, about {ahead.wait_s:.3g} s; "
                f"it may wait {may_s:.3g} s"
            )
            raise self._refusal(claim.arrival, claim.work, ahead.wait_s - may_s, said, now_s)

    def crowded_out(self, arrival: Arrival, work: float, said: str, now_s: float) -> RetryableError:
        """The error of one that made room in a full queue; `said` is what it is full of."""
        ahead = self._ahead(arrival.tenant, now_s, self._promised(now_s))
        times_full = ahead.work / self._queue.work if self._queue.work else 1.0
        wait_s = max(_LEAST_WAIT_S * max(1.0, times_full), ahead.wait_s)
        return self._refusal(arrival, work, wait_s, f"{said} wait already", now_s)

    def _promised(self, now_s: float) -> dict[str, float]:
        """Work that is expected to come back, by tenant."""
        amounts = {name: promises.amount(now_s) for name, promises in self._open.items()}
        self._open = {name: promises for name, promises in self._open.items() if len(promises)}
        return amounts

    def _ahead(self, tenant: Tenant, now_s: float, expected: dict[str, float]) -> Ahead:
        """Of those who wait, and of those who are `expected`."""
        work = self._queue.ahead_of(tenant, expected)
        own = self._queue.work_of(tenant) + expected.get(tenant.name, 0.0)
        return Ahead(work, self.speeds.wait_s(tenant, work, own, now_s))

    def _refusal(self, arrival: Arrival, work: float, wait_s: float, said: str, now_s: float) -> RetryableError:
        """The error, with a time after which the same request will be let in."""
        tenant = arrival.tenant
        promises = self._promises.setdefault(tenant.name, Promises())
        wait_s = promises.make(arrival.digest(), work, wait_s, now_s, is_first_try=arrival.is_first_try)
        self._open[tenant.name] = promises
        kind: type[RetryableError] = Overloaded
        if tenant is not ANYONE and 2 * self._queue.work_of(tenant) >= self._queue.work:
            kind, said = RateLimited, f"{tenant.name} asks for more than its share: {said}"
        self._on_refused(kind.code)
        return kind(said, retry_after_s=wait_s)
