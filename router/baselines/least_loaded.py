"""The worker with the fewest requests."""

from penstock.router.baselines.pools import Pool, TwoPools, in_flight
from penstock.router.policy import WorkerState


class LeastLoaded(TwoPools):
    """Fewest requests in flight: "least connections" of load balancers (nginx `least_conn`, HAProxy `leastconn`)."""

    def decode(self, pool: Pool) -> WorkerState:
        return min(pool.workers, key=in_flight)

    def prefill(self, pool: Pool) -> WorkerState:
        return min(pool.workers, key=in_flight)
