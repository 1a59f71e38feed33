"""Preble's E2."""

from collections import defaultdict, deque

from penstock.router.baselines.pools import Pool, TwoPools
from penstock.router.placement.prompts import prefill_s
from penstock.router.policy import PlacementRequest, WorkerState


class PrebleE2(TwoPools):
    """Exploitation and exploration of Srivatsa et al., "Preble" (ICLR '25), section 3 (WukLab/preble, multi_node).

    When more of the prompt is cached than not, exploit: of the workers with the longest match, the least loaded.
    Else explore: the lowest load + eviction + prefill cost in seconds, where load is what was placed there in the last
    `window_s`, and eviction is what computing the blocks again would take that must go to make room, as often as such
    blocks are found. A worker with more than `balance` times the load of the lightest one is not exploited.
    Preble has no prefill pool; here each pool is placed by E2 with its own part of the work.
    """

    def __init__(self, window_s: float = 180.0, balance: float = 2.0) -> None:
        self._window_s = window_s
        self._balance = balance
        self._history: deque[tuple[float, str, float]] = deque()
        self._load_s: defaultdict[str, float] = defaultdict(float)

    def decode(self, pool: Pool) -> WorkerState:
        worker = min(pool.workers, key=lambda each: self._load(pool, each) + _evict_s(pool, each))
        self._note(pool, worker, _decode_s(pool.request, worker))
        return worker

    def prefill(self, pool: Pool) -> WorkerState:
        cached = pool.request.cached_tokens
        most = max(cached.get(each.url, 0) for each in pool.workers)
        worker = min(pool.workers, key=lambda each: self._load(pool, each))
        if 2 * most > pool.request.prompt_tokens:
            holders = [each for each in pool.workers if cached.get(each.url, 0) == most]
            holder = min(holders, key=lambda each: self._load(pool, each))
            if self._load(pool, holder) <= self._balance * self._load(pool, worker) + _prefill_s(pool.request, worker):
                worker = holder
        else:
            worker = min(pool.workers, key=lambda each: self._explore_s(pool, each))
        self._note(pool, worker, _prefill_s(pool.request, worker))
        return worker

    def _explore_s(self, pool: Pool, worker: WorkerState) -> float:
        return self._load(pool, worker) + _evict_s(pool, worker) + _prefill_s(pool.request, worker)

    def _load(self, pool: Pool, worker: WorkerState) -> float:
        """Seconds of work that were placed on `worker` within the window."""
        while self._history and self._history[0][0] < pool.cluster.now_s - self._window_s:
            _, url, seconds = self._history.popleft()
            self._load_s[url] -= seconds
        return self._load_s[worker.url]

    def _note(self, pool: Pool, worker: WorkerState, seconds: float) -> None:
        self._history.append((pool.cluster.now_s, worker.url, seconds))
        self._load_s[worker.url] += seconds


def _prefill_s(request: PlacementRequest, worker: WorkerState) -> float:
    return prefill_s(worker, request.prompt_tokens, request.cached_tokens.get(worker.url, 0))


def _decode_s(request: PlacementRequest, worker: WorkerState) -> float:
    """The answer's own part of all the steps it takes part in."""
    return request.output_tokens * worker.cost.seconds(decode_tokens=1, context_tokens=request.prompt_tokens, steps=0)


def _evict_s(pool: Pool, worker: WorkerState) -> float:
    empty = worker.free_tokens - worker.evictable_tokens
    evicted = max(0, pool.request.uncached(worker) - empty) if worker.num_tokens else 0
    return pool.cluster.reuse * worker.cost.seconds(prefill_tokens=evicted, steps=0)
