"""llm-d's endpoint picker: its weighted scorers, and its affinity filter."""

from collections.abc import Callable, Sequence

from penstock.router.baselines.pools import Pool, TwoPools, in_flight
from penstock.router.placement.costs import attention_pairs
from penstock.router.policy import WorkerState

NON_CACHED_TOKENS = 16
"""Default of llm-d's `prefix-based-pd-decider`: a decode worker that lacks fewer tokens computes them itself."""


class WeightedScorers(TwoPools):
    """The highest sum of weighted scores in [0, 1] (llm-d/llm-d-router, pkg/epp/framework/plugins/scheduling/scorer).

    `prefix-cache-scorer` (share of the prompt that is cached), `kv-cache-utilization-scorer` (share of the KV cache
    that is free) and `queue-scorer` (queue length, from 1 at the shortest to 0 at the longest), weighted 3 : 2 : 2 as
    in llm-d's guide to precise prefix cache routing; `max-score-picker`, for both profiles.
    """

    alone_below_tokens = NON_CACHED_TOKENS

    def __init__(self, prefix: float = 3.0, kv_cache: float = 2.0, queue: float = 2.0) -> None:
        self._prefix, self._kv_cache, self._queue = prefix, kv_cache, queue

    def decode(self, pool: Pool) -> WorkerState:
        return self._best(pool)

    def prefill(self, pool: Pool) -> WorkerState:
        return self._best(pool)

    def _best(self, pool: Pool) -> WorkerState:
        queues = [worker.prompts for worker in pool.workers]
        shortest, longest = min(queues), max(queues)

        def score(worker: WorkerState) -> float:
            queue = 1.0 if longest == shortest else (longest - worker.prompts) / (longest - shortest)
            free = worker.free_tokens / worker.num_tokens if worker.num_tokens else 1.0
            return self._prefix * pool.cached_share(worker) + self._kv_cache * free + self._queue * queue

        return max(pool.workers, key=score)


class AffinityFilter(TwoPools):
    """llm-d's `prefix-cache-affinity-filter` with the scorers that its README recommends behind it.

    Sticky are workers with at least `threshold` of the prompt; only these are left, unless the best of them would take
    `max_penalty_s` longer than the best other one, by tokens in flight over peak prefill throughput (measured with
    one chunk on an idle worker). Then `token-load-scorer` for prefill (fewest uncached tokens) and
    `active-request-scorer` for decode (fewest requests). Defaults of the README.
    """

    alone_below_tokens = NON_CACHED_TOKENS

    def __init__(self, threshold: float = 0.8, max_penalty_s: float = 18.0) -> None:
        self._threshold = threshold
        self._max_penalty_s = max_penalty_s

    def decode(self, pool: Pool) -> WorkerState:
        return min(self._candidates(pool, in_flight_tokens=_held_tokens), key=in_flight)

    def prefill(self, pool: Pool) -> WorkerState:
        candidates = self._candidates(pool, in_flight_tokens=lambda worker: worker.prefill_tokens)
        return min(candidates, key=lambda worker: worker.prefill_tokens + pool.request.uncached(worker))

    def _candidates(self, pool: Pool, *, in_flight_tokens: Callable[[WorkerState], int]) -> Sequence[WorkerState]:
        sticky = [worker for worker in pool.workers if pool.cached_share(worker) >= self._threshold]
        others = [worker for worker in pool.workers if pool.cached_share(worker) < self._threshold]
        if not sticky or not others:
            return pool.workers

        def ttft_s(worker: WorkerState) -> float:
            return in_flight_tokens(worker) / _peak_tokens_s(worker)

        is_overloaded = min(map(ttft_s, sticky)) - min(map(ttft_s, others)) > self._max_penalty_s
        return pool.workers if is_overloaded else sticky


def _held_tokens(worker: WorkerState) -> int:
    return worker.prefill_tokens + worker.output_tokens


def _peak_tokens_s(worker: WorkerState) -> float:
    tokens = worker.step_tokens
    return tokens / worker.cost.seconds(prefill_tokens=tokens, prefill_pairs=attention_pairs(tokens))
