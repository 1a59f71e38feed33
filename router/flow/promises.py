"""Keeps the word given to refused clients: who was told when to come back, and comes back then, is let in.

Without it a burst of refused clients would all be told the same time, come back together and be refused again; and
under lasting overload whoever happened to come first would take the place that others had been told to wait for. So
each refusal books the work that the client will bring: it counts as waiting for those who come later, weighed by how
many clients do come back (one that was refused for good must not hold a place for long). Pure: every call is told the
time.
"""

import bisect
import heapq
from dataclasses import dataclass

from penstock.router.flow.advice import LONGEST_WAIT_S

EARLY_S = 0.05
"""A client that comes back so little too soon is on time: clocks and rounding."""
_GRACE_S = 2.0
_GRACE = 0.25
"""A client may come so much later than it was told, in seconds and as a part of its wait."""
_LEARNING = 0.05


@dataclass(frozen=True, slots=True)
class Promise:
    """One refused request."""

    amount: float
    """Of whatever is short: tokens of work, or requests of a quota."""
    due_s: float
    expires_s: float


class Promises:
    """Of one tenant."""

    def __init__(self, most: int = 10_000) -> None:
        """At most `most` are kept; who is refused beyond that is advised, but not booked. Nor is who is told to wait
        longer than its SDK will: it gives up."""
        self._most = most
        self._open: dict[bytes, list[Promise]] = {}
        """By request; those to equal ones in the order in which they are due."""
        self._num = 0
        self._ends: list[tuple[float, bytes]] = []
        self._amount = 0.0
        self.trust = 1.0
        """The share of clients that come back, as seen of late."""

    def __len__(self) -> int:
        return self._num

    def amount(self, now_s: float) -> float:
        """What is expected to come back."""
        self._expire(now_s)
        return self.trust * self._amount

    def make(self, digest: bytes, amount: float, wait_s: float, now_s: float, *, is_first_try: bool = False) -> float:
        """Tells this request to come back in `wait_s`. One that was told before, and comes too early, is told the same
        time again, the last of those that equal ones were told; but a first try is a request of its own. Seconds from
        now."""
        self._expire(now_s)
        told = self._open.get(digest, ())
        if told and not is_first_try and told[-1].due_s > now_s:
            return told[-1].due_s - now_s
        if wait_s <= LONGEST_WAIT_S and self._num < self._most:
            expires_s = now_s + wait_s * (1 + _GRACE) + _GRACE_S
            promise = Promise(amount, now_s + wait_s, expires_s)
            bisect.insort(self._open.setdefault(digest, []), promise, key=lambda each: each.due_s)
            self._num += 1
            self._amount += amount
            heapq.heappush(self._ends, (expires_s, digest))
        return wait_s

    def redeem(self, digest: bytes, now_s: float) -> bool:
        """Whether this request comes as promised. If so the promise is kept with this."""
        self._expire(now_s)
        told = self._open.get(digest, ())
        if not told or now_s < told[0].due_s - EARLY_S:
            return False
        self._drop(digest, told[0])
        self._learn(1.0)
        return True

    def _drop(self, digest: bytes, promise: Promise) -> None:
        self._open[digest].remove(promise)
        if not self._open[digest]:
            del self._open[digest]
        self._num -= 1
        self._amount -= promise.amount
        if not self._num:
            self._amount = 0.0
            self._ends.clear()

    def _expire(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            expires_s, digest = heapq.heappop(self._ends)
            for promise in self._open.get(digest, ()):
                if promise.expires_s == expires_s:
                    self._drop(digest, promise)
                    self._learn(0.0)
                    break

    def _learn(self, came: float) -> None:
        self.trust += _LEARNING * (came - self.trust)
