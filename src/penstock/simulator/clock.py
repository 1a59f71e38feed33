"""Simulated time: what is due next, in order of time and, at one time, of asking."""

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Event:
    """Something that will be done, unless it is cancelled."""

    __slots__ = ("action", "time_s")

    def __init__(self, time_s: float, action: Action) -> None:
        self.time_s = time_s
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Clock:
    """`now_s` moves from event to event."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, action: Action) -> Event:
        """Does `action` at `time_s`, at once when that has passed."""
        event = Event(max(time_s, self.now_s), action)
        heapq.heappush(self._queue, (event.time_s, next(self._numbers), event))
        return event

    def after(self, delay_s: float, action: Action) -> Event:
        return self.at(self.now_s + delay_s, action)

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._queue:
            self.now_s, _, event = heapq.heappop(self._queue)
            if event.action is not None:
                event.action()
