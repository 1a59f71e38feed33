"""Mooncake's KVCache-centric scheduling."""

from penstock.router.baselines.pools import Pool, TwoPools
from penstock.router.placement.prompts import prefill_s, queue_s
from penstock.router.policy import WorkerState


class MooncakeAlgorithm1(TwoPools):
    """Algorithm 1 of Qin et al., "Mooncake" (FAST '25), without its early rejection: all baselines take all requests.

    The prefill worker with the shortest queue + prefill time, where a worker that has much less cached than the best
    one (by more than `balancing_threshold`, of which the paper gives no value) first copies what that one has, which
    takes transfer time: so hot prefixes spread. The decode worker with the shortest time between tokens.
    """

    def __init__(self, balancing_threshold: float = 2.0) -> None:
        self._threshold = balancing_threshold

    def decode(self, pool: Pool) -> WorkerState:
        prompt = pool.request.prompt_tokens

        def step_s(worker: WorkerState) -> float:
            return worker.cost.seconds(decode_tokens=worker.streams + 1, context_tokens=worker.context_tokens + prompt)

        return min(pool.workers, key=step_s)

    def prefill(self, pool: Pool) -> WorkerState:
        return min(pool.workers, key=lambda worker: self._ttft_s(pool, worker))

    def source(self, pool: Pool, prefill: WorkerState) -> str | None:
        return self._best(pool).url if self._copies(pool, prefill) else None

    def _ttft_s(self, pool: Pool, worker: WorkerState) -> float:
        cached, transfer_s = pool.request.cached_tokens.get(worker.url, 0), 0.0
        if self._copies(pool, worker):
            best = self._best(pool)
            most = pool.request.cached_tokens.get(best.url, 0)
            transfer_s, cached = pool.cluster.link(best, worker).seconds(most - cached), most
        queued_s = queue_s(worker, pool.cluster.now_s)
        return queued_s + transfer_s + prefill_s(worker, pool.request.prompt_tokens, cached)

    def _copies(self, pool: Pool, worker: WorkerState) -> bool:
        """Whether the best match is so much longer that its KV is copied."""
        cached = pool.request.cached_tokens
        return cached.get(self._best(pool).url, 0) > self._threshold * cached.get(worker.url, 0)

    def _best(self, pool: Pool) -> WorkerState:
        return max(pool.workers, key=pool.cached_share)
