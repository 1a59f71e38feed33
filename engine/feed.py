"""What subscribers of `/events` are told: the whole prefix cache for whoever is new, then each change.

A large cache is told in parts, a few per round of the engine's loop, so that decoding never stands still for it. What
changes meanwhile is told after the last part. Does no I/O: it makes frames, the process sends them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from penstock.engine.kv.pool import BlockPool
from penstock.protocol import Events, Load, StepTiming, StoredBlock, event_blocks

SNAPSHOT_S = 0.01
"""So long a round sends parts of a snapshot: a quarter of a step of 20 ms, and 100,000 blocks in about a second."""


class Feed:
    """The events of one pool, numbered; every frame goes to all subscribers."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        generation: str,
        load: Callable[[], Load],
        *,
        prefix_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._most = event_blocks(block_size)
        self._block_size = block_size if prefix_cache else 0
        self._generation = generation
        self._load = load
        self._clock = clock
        self._number = 0
        self._is_read = False
        """Somebody has subscribed."""
        self._is_awaited = False
        """Somebody has subscribed since the last snapshot began."""
        self._parts: deque[dict[str, Any]] = deque()
        """Of the snapshot that is being sent."""

    @property
    def is_behind(self) -> bool:
        """Whether `snapshot` has more to say, without anything happening."""
        return self._is_awaited or bool(self._parts)

    def subscribe(self) -> None:
        """Somebody waits for a snapshot; those who come while one is being sent share the next."""
        self._is_awaited = True

    def snapshot(self) -> Iterator[Events]:
        """The next parts of a snapshot that somebody waits for, until SNAPSHOT_S are over: send each as it comes."""
        if self._is_awaited and not self._parts:
            yield from self.changes()  # earlier subscribers skip the snapshot
            self._is_read, self._is_awaited = True, False
            self._parts.extend(self._split(tuple(self._pool.snapshot()), self._pool.num_evictions))
        over = self._clock() + SNAPSHOT_S
        while self._parts and self._clock() < over:
            yield self._numbered(**self._parts.popleft())

    def changes(self, timings: tuple[StepTiming, ...] = ()) -> list[Events]:
        """What has changed since the last call, in one frame or more; none while nobody reads or a snapshot is sent."""
        if self._parts:
            return []
        stored, removed = self._pool.drain_events()
        if not self._is_read:
            return []
        starts = range(0, max(1, len(stored), len(removed)), self._most)
        cuts = [slice(start, start + self._most) for start in starts]
        frames = [self._numbered(stored=stored[cut], removed=removed[cut]) for cut in cuts[:-1]]
        stored, removed = stored[cuts[-1]], removed[cuts[-1]]
        evictions = self._pool.num_evictions
        return [*frames, self._numbered(stored=stored, removed=removed, evictions=evictions, timings=timings)]

    def _split(self, blocks: tuple[StoredBlock, ...], evictions: int) -> Iterator[dict[str, Any]]:
        for part, start in enumerate(range(0, max(1, len(blocks)), self._most)):
            stop = start + self._most
            yield {
                "snapshot": True,
                "part": part,
                "more": stop < len(blocks),
                "block_size": self._block_size,
                "stored": blocks[start:stop],
                "evictions": evictions,
            }

    def _numbered(self, **content: Any) -> Events:
        self._number += 1
        return Events(generation=self._generation, sequence=self._number, load=self._load(), **content)
