"""Every request that a worker could never answer is refused with the field's name."""

import contextlib
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.engine.messages import Limits
from penstock.errors import RequestError
from penstock.protocol import BlocksRequest, GenerateRequest, Sample, SamplingParams
from penstock.worker.checks import check_blocks_request, check_request

LIMITS = Limits(vocab_size=100, max_context_tokens=64, block_size=4, num_blocks=12)
GOOD = GenerateRequest(
    request_id="r", prompt=(1, 2, 3), sampling=SamplingParams(max_tokens=10), samples=(Sample(0, 1), Sample(1, 2))
)


def sampling(**changes: Any) -> dict[str, Any]:
    return {"sampling": replace(GOOD.sampling, **changes)}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("prompt", {"prompt": (1, 100)}),
        ("prompt", {"prompt": (1,) * 64}),
        ("prompt", {"prompt": (1,) * 40}),  # within the context, but 50 tokens are more than 12 blocks
        ("samples", {"samples": tuple(Sample(i, i) for i in range(9))}),
        ("samples", {"samples": (Sample(0, 1), Sample(0, 2))}),
        ("samples", {"samples": (Sample(0, 1, output=(5,)), Sample(1, 2))}),
        ("samples", {"samples": (Sample(0, 1, output=(100,)),)}),
        ("samples", {"samples": (Sample(0, 1, output=(5,) * 10),)}),
        ("sampling.max_tokens", sampling(max_tokens=62)),
        ("sampling.min_tokens", sampling(min_tokens=11)),
        ("sampling.stop_token_ids", sampling(stop_token_ids=(100,))),
        ("sampling.logit_bias", sampling(logit_bias={100: 1.0})),
        ("sampling.logprobs", sampling(logprobs=21)),
        ("sampling.stop_token_ids", sampling(stop_token_ids=(5,) * 257)),
        ("timeout_s", {"timeout_s": 0.0}),
        ("timeout_s", {"timeout_s": float("nan")}),
        ("prefill", {"prefill": "10.0.0.1:8000"}),
    ],
)
def test_impossible_request_is_refused_with_its_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        check_request(replace(GOOD, **changes), LIMITS, max_samples=8)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"samples": tuple(Sample(i, i) for i in range(8))},
        {"samples": (Sample(3, 1, output=(99,) * 9),)},
        {"prompt": (99,) * 38},
        sampling(max_tokens=45, min_tokens=45, logprobs=20),
    ],
)
def test_largest_possible_request_is_taken(changes: dict[str, Any]) -> None:
    check_request(replace(GOOD, **changes), LIMITS, max_samples=8)


@pytest.mark.parametrize("number", [1024, 1025])
def test_logit_bias_is_bounded(number: int) -> None:
    request = replace(GOOD, **sampling(logit_bias=dict.fromkeys(range(number), 1.0)))
    expected = contextlib.nullcontext() if number == 1024 else pytest.raises(RequestError, match="at most 1024 tokens")
    with expected:
        check_request(request, replace(LIMITS, vocab_size=2000), max_samples=8)


def test_prefill_needs_memory_for_the_prompt_and_one_token_only() -> None:
    request = replace(GOOD, prompt=(1,) * 47)
    check_request(request, LIMITS, max_samples=8, prefill_only=True)
    with pytest.raises(RequestError, match="need 15 KV blocks"):
        check_request(request, LIMITS, max_samples=8)
    with pytest.raises(RequestError, match="need 13 KV blocks"):
        check_request(replace(GOOD, prompt=(1,) * 48), LIMITS, max_samples=8, prefill_only=True)


def test_prefill_needs_context_for_the_output_so_far_and_one_token_only() -> None:
    """Its context may be shorter than that of the decode worker, which the rest of the answer must fit."""
    limits = replace(LIMITS, num_blocks=100)
    request = replace(GOOD, prompt=(1,) * 50, samples=(Sample(0, 1, output=(5,) * 12),))
    for max_tokens in (13, 14, 1000):
        check_request(replace(request, **sampling(max_tokens=max_tokens)), limits, max_samples=8, prefill_only=True)
    with pytest.raises(RequestError, match="exceed the context of 64 tokens"):
        check_request(replace(request, **sampling(max_tokens=15)), limits, max_samples=8)
    request = replace(request, prompt=(1,) * 51)
    check_request(replace(request, **sampling(max_tokens=13)), limits, max_samples=8, prefill_only=True)
    with pytest.raises(RequestError, match="exceed the context of 64 tokens"):  # its first token would end the answer
        check_request(replace(request, **sampling(max_tokens=14)), limits, max_samples=8, prefill_only=True)


@pytest.mark.parametrize("number", [0, 13])
def test_blocks_request_names_at_least_one_and_no_more_than_the_pool_has(number: int) -> None:
    with pytest.raises(RequestError) as refused:
        check_blocks_request(BlocksRequest(request_id="r", hashes=(b"h",) * number), LIMITS)
    assert refused.value.field == "hashes"
