"""Small traces and workers whose times are computed by hand."""

from penstock.router.placement.costs import StepCost
from penstock.simulator.cluster import ClusterSpec
from penstock.simulator.kinds import WorkerKind
from penstock.simulator.trace import BLOCK_TOKENS, Trace, TraceRequest

KIND = WorkerKind(
    name="small",
    step=StepCost(step_s=0.01, prefill_token_s=1e-4, prefill_pair_s=0.0, decode_token_s=1e-3, context_token_s=1e-6),
    kv_tokens=100 * BLOCK_TOKENS,
    kv_token_bytes=1000,
    link_bytes_s=1e8,
    link_latency_s=0.0,
    step_tokens=2048,
    price_per_hour=1.0,
)
"""2,048 tokens of a prompt take 0.2148 s; KV moves at 10 us per token."""


def spec(num_prefill: int, num_decode: int, **others: object) -> ClusterSpec:
    """Messages take 1 ms."""
    options = {"hop_s": 1e-3, "event_delay_s": 5e-3, **others}
    return ClusterSpec((KIND,) * num_prefill, (KIND,) * num_decode, **options)  # type: ignore[arg-type]


def trace(*requests: tuple[float, int, int] | tuple[float, int, int, str]) -> Trace:
    """(arrival, prompt tokens, output tokens[, conversation]): prompts of one conversation begin the same."""
    found = []
    for index, (arrival_s, prompt, output, *name) in enumerate(requests):
        conversation = name[0] if name else f"own{index}"
        hashes = tuple(f"{conversation}/{block}".encode() for block in range(prompt // BLOCK_TOKENS))
        found.append(TraceRequest(index, arrival_s, prompt, output, hashes))
    return Trace("small", tuple(found))
