"""Who of those that wait is tried again, and when; and for whom a worker is kept. Pure: every call is told the time.

One that cannot go holds up nobody who finds room: neither one whose best worker is full, nor one that fits nowhere yet,
with many answers or a very long prompt. For the first of the latter its best worker is kept: others would fill every
gap there, and it would wait for ever.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.router.flow.turns import Busy, Turn

_MOST_AGAIN = 8
"""Of those that were tried before, so many are tried again in one round."""
_PAUSE = 10.0
"""Times as long as that took, until it is done again: it is a tenth of the event loop's time at most."""
_REST_S = 2.0
"""One that fits nowhere is not tried again for so long, but for the first of them: others have their turn."""
_PATIENCE_S = 10.0
"""The worker that is kept for a request that has waited so long is not lent, even if others find no room elsewhere."""


@dataclass(slots=True, eq=False)
class Tried:
    """What has become of one that waits."""

    since: float
    """It waits."""
    compute_s: float = 0.0
    """To its first token, once a worker begins with it; 0 while unknown."""
    could_go_since: float | None = None
    """To a worker that was not its best."""
    was_tried: bool = False
    """In vain, while others of its kind had hope."""
    again_at: float = 0.0


class Tries:
    """Of one queue."""

    def __init__(self, has_room: Callable[[Turn], bool], stopwatch: Callable[[], float] = time.perf_counter) -> None:
        """`has_room` is a quick look whether any request of a kind might be placed: `Turn.in_line`, `Turn.heavy`,
        `Turn.priority` and `Turn.kept` say which. `stopwatch` measures what attempts cost, in seconds."""
        self.has_room = has_room
        self.stopwatch = stopwatch
        self.first: Tried | None = None
        """The first that fits nowhere."""
        self.kept = ""
        """The worker that is kept for it."""
        self.pause_until = 0.0

    def kept_from(self, kind: Turn, now: float) -> str | None:
        """The worker that requests of this kind leave to another; None when nobody has room for any of them."""
        if self.has_room(kind):
            return kind.kept
        is_lent = self.first is not None and now - self.first.since < _PATIENCE_S
        return "" if kind.kept and is_lent and self.has_room(replace(kind, kept="")) else None

    def in_vain(self, tried: Tried, busy: Busy, now: float, *, hope: bool) -> None:
        """It stays. Without `hope` for any of its kind, nothing is its own fault."""
        tried.compute_s = busy.compute_s
        tried.was_tried = hope
        if busy.could_go:
            tried.could_go_since = now if tried.could_go_since is None else tried.could_go_since
        elif hope:
            self.first = self.first or tried
            tried.again_at = now + _REST_S
            if self.first is tried:
                self.kept = busy.waits_for

    def gone(self, tried: Tried) -> None:
        """It no longer waits."""
        if self.first is tried:
            self.first, self.kept = None, ""


class Round:
    """One look at those who wait, until one can go."""

    def __init__(self, tries: Tries, now: float) -> None:
        self._tries = tries
        self._now = now
        self._kept: dict[Turn, str | None] = {}
        self._saw_first = False
        self._num_again = 0
        self._took_s = 0.0

    def turn(self, tried: Tried, kind: Turn, remaining_s: float) -> Turn | None:
        """Its turn; None when it is not tried now."""
        tries, now, is_first = self._tries, self._now, self._tries.first is tried
        self._saw_first |= is_first
        look = replace(kind, waiting=0, kept="" if is_first else tries.kept)
        if look not in self._kept:
            self._kept[look] = tries.kept_from(look, now)
        kept = self._kept[look]
        if kept is None:
            return None
        if tried.was_tried:
            rests = now < tried.again_at and tries.first is not None and not is_first
            if rests or now < tries.pause_until or self._num_again == _MOST_AGAIN:
                return None
            self._num_again += 1
        waited_s = 0.0 if tried.could_go_since is None else now - tried.could_go_since
        queued_s = now - tried.since
        return replace(kind, queued_s=queued_s, kept=kept, waited_s=waited_s, remaining_s=remaining_s)

    def in_vain(self, tried: Tried, busy: Busy, took_s: float) -> None:
        """It was tried, and stays."""
        self._tries.in_vain(tried, busy, self._now, hope=True)
        self._saw_first |= self._tries.first is tried
        self._took_s += took_s

    def end(self) -> None:
        """None of the others can go."""
        if self._tries.first is not None and not self._saw_first:
            self._tries.gone(self._tries.first)  # others have come before it: no worker is kept for so long
        if self._num_again:
            self._tries.pause_until = self._now + _PAUSE * self._took_s
