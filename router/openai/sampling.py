"""From the API's sampling fields to the wire's SamplingParams, with what only the model's limits can judge. Pure."""

import hashlib
import secrets

from penstock.errors import RequestError
from penstock.protocol import SamplingParams
from penstock.router.openai.requests import ApiRequest


def sampling_params(
    request: ApiRequest,
    *,
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    prompt_tokens: int,
    context_tokens: int,
    vocab_size: int,
    prompt_field: str,
    max_tokens_field: str,
) -> SamplingParams:
    """Raises RequestError when prompt and answer do not fit into the context or a token id does not exist."""
    room = context_tokens - prompt_tokens
    if room < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens, but the context holds {context_tokens} with the answer",
            field=prompt_field,
            code="context_length_exceeded",
        )
    if max_tokens is not None and max_tokens > room:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and {max_tokens_field} asks for {max_tokens}, "
            f"but the context holds {context_tokens}; at most {room} are left",
            field=max_tokens_field,
            code="context_length_exceeded",
        )
    limit = max_tokens or min(room, default_max_tokens or room)
    min_tokens = request.min_tokens or 0
    if min_tokens > limit:
        raise RequestError(f"min_tokens is {min_tokens}, more than {max_tokens_field}, {limit}", field="min_tokens")
    for token in request.stop_token_ids or []:
        check_token(token, vocab_size, "stop_token_ids")
    top_p = 1.0 if request.top_p is None else request.top_p
    return SamplingParams(
        max_tokens=limit,
        min_tokens=min_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=1 if top_p == 0 else max(0, request.top_k or 0),  # OpenAI allows top_p 0: only the likeliest token
        top_p=top_p or 1.0,
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=_logit_bias(request, vocab_size),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def sample_seeds(seed: int | None, num_samples: int) -> list[int]:
    """Sample i draws from hash(seed, i), so that each can be resumed, and repeated, alone."""
    if seed is None:
        seed = secrets.randbits(63)
    return [_hash(seed, index) for index in range(num_samples)]


def check_token(token: int, vocab_size: int, field: str) -> None:
    """Raises RequestError for an id the model does not have."""
    if not 0 <= token < vocab_size:
        raise RequestError(f"{field}: {token} is not a token id; the model has {vocab_size}", field=field)


def _hash(seed: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _logit_bias(request: ApiRequest, vocab_size: int) -> dict[int, float]:
    biases = {}
    for key, bias in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):  # 2**31 has ten digits
            raise RequestError(f"logit_bias: {key[:20]!r} is not a token id", field="logit_bias")
        check_token(int(key), vocab_size, "logit_bias")
        biases[int(key)] = bias
    return biases
