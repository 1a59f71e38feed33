"""The queue of LLMDeployments that want a look: each at most once in it, never looked at twice at the same time."""

import asyncio
from collections import defaultdict

from penstock.operator.metrics import Metrics
from penstock.operator.store import Key

COALESCE_S = 0.03
"""News that arrive within so long are looked at together: a starting pod alone makes five."""
COALESCE_PER_KEY_S = 0.005
LONGEST_COALESCE_S = 1.0
"""The more LLMDeployments want a look, the longer: while two hundred start, the API server has better things to do than
to hear five times of each how far it is."""
PAUSE_S = 0.4
"""Between two looks at the same LLMDeployment: while a thousand pods start, every look writes a new status."""
_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 5.0


class Queue:
    """One failing key waits longer each time, and no other key with it."""

    def __init__(self, metrics: Metrics) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._waiting: set[Key] = set()
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: defaultdict[Key, int] = defaultdict(int)
        self._looked_at: dict[Key, float] = {}
        self._depth = metrics.queue_depth

    def add(self, key: Key, delay_s: float | None = None) -> None:
        """Wants a look at `key` soon, or after `delay_s`; or earlier if that was wanted before."""
        loop = asyncio.get_running_loop()
        soon = loop.time() + (self._coalesce_s() if delay_s is None else delay_s)
        due = max(soon, self._looked_at.get(key, -PAUSE_S) + PAUSE_S)
        timer = self._timers.get(key)
        if key in self._waiting or (timer is not None and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)
        self._depth.set(len(self._waiting) + len(self._timers))

    async def get(self) -> Key:
        """The next key; call `done` with it afterwards."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._busy.add(key)
        self._depth.set(len(self._waiting) + len(self._timers))
        return key

    def done(self, key: Key, *, failed: bool) -> None:
        """The look is over; a failed one is repeated later."""
        self._busy.discard(key)
        self._looked_at[key] = asyncio.get_running_loop().time()
        if failed:
            delay_s = min(_FIRST_RETRY_S * 2 ** self._failures[key], _LONGEST_RETRY_S)
            self._failures[key] += 1
            self.add(key, delay_s)
        else:
            self._failures.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def num_failures(self, key: Key) -> int:
        """Looks at `key` that failed in a row."""
        return self._failures.get(key, 0)

    def forget(self, key: Key) -> None:
        """It is gone."""
        self._looked_at.pop(key, None)
        self._failures.pop(key, None)

    def _coalesce_s(self) -> float:
        num = len(self._waiting) + len(self._timers)
        return min(COALESCE_S + COALESCE_PER_KEY_S * num, LONGEST_COALESCE_S)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        if key in self._busy:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)
