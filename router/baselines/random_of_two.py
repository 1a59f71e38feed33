"""The better of two drawn at random."""

import random

from penstock.router.baselines.pools import Pool, TwoPools, in_flight
from penstock.router.policy import WorkerState


class RandomOfTwo(TwoPools):
    """Of two workers drawn at random, the one with fewer requests (Mitzenmacher 2001, "The Power of Two Choices").

    It needs no fresh figures to avoid that everybody rushes to the one that was idle a moment ago.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def decode(self, pool: Pool) -> WorkerState:
        return self._better(pool)

    def prefill(self, pool: Pool) -> WorkerState:
        return self._better(pool)

    def _better(self, pool: Pool) -> WorkerState:
        return min(self._random.sample(pool.workers, min(2, len(pool.workers))), key=in_flight)
