"""Dynamo's cost: blocks to compute and blocks in use."""

from penstock.router.baselines.pools import Pool, TwoPools
from penstock.router.policy import WorkerState


class DynamoCost(TwoPools):
    """NVIDIA Dynamo's KV router (ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector, docs "Router Design").

        cost = prefill_load_scale * (prefill tokens in flight + prompt - cached) / block + decode blocks in use

    Disaggregated, its prefill router counts no decode blocks and its decode router nothing but these (dynamo's
    lib/mocker/src/replay/offline/disagg.rs sets the two routers up like that), at temperature 0.
    """

    def __init__(self, prefill_load_scale: float = 1.0) -> None:
        self._scale = prefill_load_scale

    def decode(self, pool: Pool) -> WorkerState:
        prompt = pool.request.prompt_tokens
        return min(pool.workers, key=lambda worker: -(-(worker.context_tokens + prompt) // worker.block_tokens))

    def prefill(self, pool: Pool) -> WorkerState:
        return min(pool.workers, key=lambda worker: self._prefill_cost(pool, worker))

    def _prefill_cost(self, pool: Pool, worker: WorkerState) -> float:
        new = pool.request.prompt_tokens - pool.request.cached_tokens.get(worker.url, 0)
        return self._scale * (worker.prefill_tokens + new) / worker.block_tokens
