"""Every worker in turn."""

import itertools

from penstock.router.baselines.pools import Pool, TwoPools
from penstock.router.policy import WorkerState


class RoundRobin(TwoPools):
    """Each pool in turn: what a Kubernetes Service comes to."""

    def __init__(self) -> None:
        self._decode_turns = itertools.count()
        self._prefill_turns = itertools.count()

    def decode(self, pool: Pool) -> WorkerState:
        return pool.workers[next(self._decode_turns) % len(pool.workers)]

    def prefill(self, pool: Pool) -> WorkerState:
        return pool.workers[next(self._prefill_turns) % len(pool.workers)]
