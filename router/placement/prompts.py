"""What prompts take on a worker: those that are queued there, and one that may come. Pure.

A step that computes a part of a prompt also decodes the worker's streams: they take their rows of it, and their time.
"""

from penstock.router.placement.costs import attention_pairs
from penstock.router.policy import WorkerState


def chunks(worker: WorkerState) -> tuple[int, float]:
    """Prompt tokens that one step of `worker` computes, and its seconds without those."""
    cost, streams = worker.cost, worker.streams
    shared_s = streams * cost.decode_token_s + worker.context_tokens * cost.context_token_s + cost.step_s
    chunk = worker.step_tokens - streams
    return chunk if chunk > 1 else 1, shared_s


def prefill_s(worker: WorkerState, prompt_tokens: int, cached_tokens: int = 0) -> float:
    """Seconds of a prompt, once `worker` begins with it. The last token is always computed."""
    cost = worker.cost
    tokens = max(1, prompt_tokens - cached_tokens)
    pairs = attention_pairs(prompt_tokens, prompt_tokens - tokens)
    chunk, shared_s = chunks(worker)
    return tokens * cost.prefill_token_s + pairs * cost.prefill_pair_s + -(-tokens // chunk) * shared_s


def queue_s(worker: WorkerState, now_s: float) -> float:
    """Seconds until the prompts that are with `worker` are computed. Short ones share steps."""
    if not worker.prefill_tokens:
        return 0.0
    chunk, shared_s = chunks(worker)
    return left_s(worker, worker.cost.prefill_token_s + shared_s / chunk, now_s)


def left_s(worker: WorkerState, token_s: float, now_s: float) -> float:
    """Of the queued prompts, at `token_s` per token: the first has been computing for a while."""
    pair_s = worker.cost.prefill_pair_s
    all_s = worker.prefill_tokens * token_s + worker.prefill_pairs * pair_s
    head_s = worker.head_tokens * token_s + worker.head_pairs * pair_s
    done_s = now_s - worker.head_since_s
    rest_s = all_s - (head_s if head_s < done_s else done_s)  # min and max take longer: this is hot
    return rest_s if rest_s > 0.0 else 0.0
