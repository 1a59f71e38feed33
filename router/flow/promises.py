"""Keeps the word given to refused clients: who was told when to come back, and comes back then, is let in.

Without it a burst of refused clients would all be told the same time, come back together and be refused again; and
under lasting overload whoever happened to come first would take the place that others had been told to wait for. So
each refusal books the work that the client will bring: it counts as waiting for those who come later, weighed by how
many clients do come back (one that was refused for good must not hold a place for long). Pure: every call is told the
time.
"""

import heapq
from dataclasses import dataclass

from penstock.router.flow.advice import LONGEST_WAIT_S

EARLY_S = 0.05
"""A client that comes back so little too soon is on time: clocks and rounding."""
_GRACE_S = 2.0
_GRACE = 0.25
"""A client may come so much later than it was told, in seconds and as a part of its wait."""
_LEAST_TRUST = 0.1
"""Some staggering remains even where hardly anybody has come back so far."""
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
        self._open: dict[bytes, Promise] = {}
        self._ends: list[tuple[float, bytes]] = []
        self._amount = 0.0
        self.trust = 1.0
        """The share of clients that come back, as seen of late."""

    def __len__(self) -> int:
        return len(self._open)

    def amount(self, now_s: float) -> float:
        """What is expected to come back."""
        self._expire(now_s)
        return self.trust * self._amount

    def find(self, digest: bytes, now_s: float) -> Promise | None:
        """What was promised to this request, if that still holds."""
        self._expire(now_s)
        return self._open.get(digest)

    def make(self, digest: bytes, amount: float, wait_s: float, now_s: float) -> float:
        """Tells this request to come back in `wait_s`. One that was told before, and comes too early, is told the same
        time again. Seconds from now."""
        known = self.find(digest, now_s)
        if known is not None and known.due_s > now_s:
            return known.due_s - now_s
        if known is not None:
            self._drop(digest)
        if wait_s <= LONGEST_WAIT_S and len(self._open) < self._most:
            expires_s = now_s + wait_s * (1 + _GRACE) + _GRACE_S
            self._open[digest] = Promise(amount, now_s + wait_s, expires_s)
            self._amount += amount
            heapq.heappush(self._ends, (expires_s, digest))
        return wait_s

    def redeem(self, digest: bytes, now_s: float) -> bool:
        """Whether this request comes as promised. If so the promise is kept with this."""
        promise = self.find(digest, now_s)
        if promise is None or now_s < promise.due_s - EARLY_S:
            return False
        self._drop(digest)
        self._learn(1.0)
        return True

    def _drop(self, digest: bytes) -> None:
        self._amount -= self._open.pop(digest).amount
        if not self._open:
            self._amount = 0.0
            self._ends.clear()

    def _expire(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            expires_s, digest = heapq.heappop(self._ends)
            promise = self._open.get(digest)
            if promise is not None and promise.expires_s == expires_s:
                self._drop(digest)
                self._learn(0.0)

    def _learn(self, came: float) -> None:
        self.trust = max(_LEAST_TRUST, self.trust + _LEARNING * (came - self.trust))
