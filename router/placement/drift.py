"""Whether predictions hold."""

from collections import deque

WINDOW = 64
"""Decisions that drift is judged by."""
DRIFTS = ("ttft", "cached_tokens")
"""What may turn out to be unpredictable."""


class Drift:
    """Whether predictions of one sort hold: alarmed when most of a window are off, calm when at most a quarter are."""

    def __init__(self) -> None:
        self.alarmed = False
        self._last: deque[tuple[str, bool]] = deque()
        self._num_off = 0

    def add(self, worker: str, *, off: bool) -> None:
        """What came of a prediction that rests on what `worker` told."""
        self._last.append((worker, off))
        self._num_off += off
        if len(self._last) > WINDOW:
            self._num_off -= self._last.popleft()[1]
        share = self._num_off / WINDOW  # of a whole window: a few samples alarm nobody
        self.alarmed = share > 0.5 or (self.alarmed and share > 0.25)

    def leave_out(self, worker: str) -> None:
        """What came of its word says nothing about the others."""
        self._last = deque(each for each in self._last if each[0] != worker)
        self._num_off = sum(off for _, off in self._last)


def is_off(actual: float, predicted: float, slack: float, factor: float = 2.0) -> bool:
    """Whether a prediction was wrong by more than this factor and this much."""
    return actual > factor * predicted + slack or predicted > factor * actual + slack
