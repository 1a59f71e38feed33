"""SGLang's cache-aware routing."""

from penstock.router.baselines.pools import Pool, TwoPools, in_flight
from penstock.router.baselines.random_of_two import RandomOfTwo
from penstock.router.policy import WorkerState


class CacheAware(TwoPools):
    """SGLang's router (sgl-project/sglang, sgl-model-gateway/src/policies/cache_aware.rs) with its launcher's defaults.

    The longest match if it is more than `cache_threshold` of the prompt, else the least loaded worker; the least loaded
    one in any case while the pool is imbalanced: max - min > `balance_abs` and max > `balance_rel` * min requests.
    That is for prefill; decode workers are chosen by power of two, as its guide to disaggregation advises.
    The original guesses caches from its own routing history; this one is told what is in them.
    """

    def __init__(
        self, seed: int = 0, *, cache_threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5
    ) -> None:
        self._decode = RandomOfTwo(seed)
        self._cache_threshold = cache_threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel

    def decode(self, pool: Pool) -> WorkerState:
        return self._decode.decode(pool)

    def prefill(self, pool: Pool) -> WorkerState:
        loads = [in_flight(worker) for worker in pool.workers]
        least, most = min(loads), max(loads)
        if most - least <= self._balance_abs or most <= self._balance_rel * least:
            best = max(pool.workers, key=pool.cached_share)
            if pool.cached_share(best) > self._cache_threshold:
                return best
        return pool.workers[loads.index(least)]
