"""Which requests a worker takes: pure checks against the engine's limits, before any header is sent."""

import math

from penstock.engine.messages import Limits
from penstock.errors import RequestError
from penstock.protocol import BlocksRequest, GenerateRequest, SamplingParams

MAX_LOGPROBS = 20
"""As many alternatives per token as OpenAI's API allows."""
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 256
"""Every entry costs each step, and with it every other stream."""


def check_request(request: GenerateRequest, limits: Limits, *, max_samples: int, prefill_only: bool = False) -> None:
    """Raises RequestError, naming the field, when this worker could never answer `request`.

    `max_samples` is how many sequences the engine batches. With `prefill_only` the worker computes no more than the
    prompt, the output so far and one token, so that is all that must fit its memory and its context.
    """
    _check_token_ids(request, limits.vocab_size)
    _check_samples(request, max_samples)
    _check_lengths(request, limits, prefill_only)
    if not (math.isfinite(request.timeout_s) and request.timeout_s > 0):
        raise RequestError(
            f"timeout_s must be a positive number of seconds, not {request.timeout_s}", field="timeout_s"
        )
    _check_sampling(request.sampling)
    for field, url in (("prefill", request.prefill), ("source", request.source)):
        if url is not None and not url.startswith(("http://", "https://")):
            raise RequestError(f"{field} must be the URL of a worker, not {url!r}", field=field)


def check_blocks_request(request: BlocksRequest, limits: Limits) -> None:
    """Raises RequestError when `request` asks for no block or for more than the pool has."""
    if not 1 <= len(request.hashes) <= limits.num_blocks:
        message = f"hashes must be 1 to {limits.num_blocks} (the blocks of this worker), not {len(request.hashes)}"
        raise RequestError(message, field="hashes")


def _check_token_ids(request: GenerateRequest, vocab_size: int) -> None:
    sampling = request.sampling
    ids_of_fields = {
        "prompt": request.prompt,
        "samples": [token for sample in request.samples for token in sample.output],
        "sampling.stop_token_ids": sampling.stop_token_ids,
        "sampling.logit_bias": sampling.logit_bias,
    }
    for field, ids in ids_of_fields.items():
        if (highest := max(ids, default=0)) >= vocab_size:
            raise RequestError(f"token id {highest} is not below the vocabulary size {vocab_size}", field=field)


def _check_sampling(sampling: SamplingParams) -> None:
    if (sampling.logprobs or 0) > MAX_LOGPROBS:
        message = f"logprobs may be at most {MAX_LOGPROBS}, not {sampling.logprobs}"
        raise RequestError(message, field="sampling.logprobs")
    if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
        message = f"logit_bias may hold at most {MAX_LOGIT_BIAS} tokens, not {len(sampling.logit_bias)}"
        raise RequestError(message, field="sampling.logit_bias")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        message = f"stop_token_ids may hold at most {MAX_STOP_TOKEN_IDS} tokens, not {len(sampling.stop_token_ids)}"
        raise RequestError(message, field="sampling.stop_token_ids")


def _check_samples(request: GenerateRequest, max_samples: int) -> None:
    samples, max_tokens = request.samples, request.sampling.max_tokens
    if len(samples) > max_samples:
        message = f"{len(samples)} samples are more than the {max_samples} sequences of this worker"
        raise RequestError(message, field="samples")
    if len({sample.index for sample in samples}) < len(samples):
        raise RequestError("two samples have the same index", field="samples")
    resumed = len(samples[0].output) if len(samples) == 1 else 0
    if len(samples) > 1 and any(sample.output for sample in samples):
        raise RequestError("a request that resumes has exactly one sample", field="samples")
    if resumed >= max_tokens:
        raise RequestError(
            f"the {resumed} output tokens so far leave nothing of max_tokens {max_tokens}", field="samples"
        )


def _check_lengths(request: GenerateRequest, limits: Limits, prefill_only: bool) -> None:
    prompt, sampling = len(request.prompt), request.sampling
    if sampling.min_tokens > sampling.max_tokens:
        message = f"min_tokens {sampling.min_tokens} is more than max_tokens {sampling.max_tokens}"
        raise RequestError(message, field="sampling.min_tokens")
    if prompt >= limits.max_context_tokens:
        message = f"the prompt's {prompt} tokens leave no room in the context of {limits.max_context_tokens} tokens"
        raise RequestError(message, field="prompt", code="context_length_exceeded")
    resumed = len(request.samples[0].output)
    # One token more than it computes: it would take a context that ends with its first token for the answer's end.
    within = min(sampling.max_tokens, resumed + 2) if prefill_only else sampling.max_tokens
    if prompt + within > limits.max_context_tokens:
        asked = f"the {resumed} resumed" if prefill_only else f"max_tokens {sampling.max_tokens}"
        message = f"the prompt's {prompt} tokens and {asked} exceed the context of {limits.max_context_tokens} tokens"
        raise RequestError(message, field="sampling.max_tokens", code="context_length_exceeded")
    output = resumed + 1 if prefill_only else sampling.max_tokens
    blocks = -(-(prompt + output) // limits.block_size)
    if blocks > limits.num_blocks:
        message = f"{prompt} + {output} tokens need {blocks} KV blocks, but this worker has {limits.num_blocks}"
        raise RequestError(message, field="prompt", code="context_length_exceeded")
