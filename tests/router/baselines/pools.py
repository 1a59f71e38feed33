"""Small clusters for policies: workers by name, and what the test says of them."""

from typing import Any

from penstock.router.placement.costs import LinkCost, StepCost
from penstock.router.policy import ClusterSnapshot, PlacementRequest, WorkerState

COST = StepCost(step_s=0.01, prefill_token_s=1e-4, prefill_pair_s=0.0, decode_token_s=1e-3, context_token_s=1e-6)
"""1,000 tokens of a prompt take 0.1 s; a step 10 ms, 1 ms for each sequence and 1 ms for each 1,000 tokens of KV."""


def prefill(url: str, **state: Any) -> WorkerState:
    return WorkerState(url, role="prefill", **{"cost": COST, "step_tokens": 1000, "num_tokens": 100_000, **state})


def decode(url: str, **state: Any) -> WorkerState:
    return WorkerState(url, **{"cost": COST, "step_tokens": 1000, "num_tokens": 100_000, **state})


def cluster(*workers: WorkerState, **known: Any) -> ClusterSnapshot:
    return ClusterSnapshot(
        tuple(each for each in workers if each.role == "prefill"),
        tuple(each for each in workers if each.role == "decode"),
        **known,
    )


def request(tokens: int, **cached: int) -> PlacementRequest:
    """A prompt of which each worker has so many tokens."""
    return PlacementRequest(tokens, cached)


LINK = LinkCost(latency_s=0.0, token_s=1e-5)
"""1,000 tokens of KV move in 10 ms."""
