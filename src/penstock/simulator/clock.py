"""Simulated time: what is due next, in order of time and, at one time, of asking."""

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Event:
    """Something that will be done, unless it is cancelled."""

    __slots__ = ("action", "is_look", "time_s")

    def __init__(self, time_s: float, action: Action, *, is_look: bool = False) -> None:
        self.time_s = time_s
        self.action: Action | None = action
        self.is_look = is_look

    def cancel(self) -> None:
        self.action = None


class Clock:
    """`now_s` moves from event to event."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()
        self._num_due = 0
        """But for looks."""

    def at(self, time_s: float, action: Action, *, is_look: bool = False) -> Event:
        """Does `action` at `time_s`, at once when that has passed. A look only sees what the rest has come to: when
        nothing but looks is due, all is over."""
        event = Event(max(time_s, self.now_s), action, is_look=is_look)
        self._num_due += not is_look
        heapq.heappush(self._queue, (event.time_s, next(self._numbers), event))
        return event

    def after(self, delay_s: float, action: Action) -> Event:
        return self.at(self.now_s + delay_s, action)

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._num_due:
            self.now_s, _, event = heapq.heappop(self._queue)
            self._num_due -= not event.is_look
            if event.action is not None:
                event.action()
