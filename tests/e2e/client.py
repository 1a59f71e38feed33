"""The stock openai SDK as the tests use it: answers as comparable values, streams with the time of every token."""

import time
from dataclasses import dataclass, field
from typing import Any

import openai
import torch

MODEL = "model"
API_KEY = "none"
VOCAB_LOW, VOCAB_HIGH = 10, 480
"""Token ids of random prompts: no special ones."""


@dataclass
class Answer:
    """One choice: its text, and per token its bytes and log-probability; what differs in one bit is not equal."""

    text: str = ""
    tokens: list[tuple[Any, float]] = field(default_factory=list)
    finish_reason: str | None = None

    def assert_varied(self) -> None:
        """Equality of a constant answer proves nothing."""
        assert len({token for token, _ in self.tokens}) >= 8, self.tokens


@dataclass
class Reply:
    """What one call gave."""

    answers: dict[int, Answer] = field(default_factory=dict)
    usage: Any = None
    prefill: str | None = None
    """The prefill worker that the router named in its headers."""
    decode: str | None = None
    times: list[float] = field(default_factory=list)
    """When each event with text or tokens came (time.monotonic)."""
    error: Exception | None = None
    ended: float = 0.0

    @property
    def answer(self) -> Answer:
        return self.answers[0]


def random_prompt(length: int, seed: int) -> list[int]:
    """Pseudo-random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_LOW, VOCAB_HIGH, (length,), generator=generator).tolist()


def new_client(url: str, timeout_s: float = 60.0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=timeout_s)


def new_async_client(url: str, timeout_s: float = 60.0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=timeout_s)


def completion(client: openai.OpenAI, prompt: list[int] | str, **options: Any) -> Reply:
    """/v1/completions with log-probabilities; `stream`, `salt` and `ignore_eos` beside the API's own fields."""
    streaming = options.get("stream", False)
    response = client.completions.with_raw_response.create(**completion_body(prompt, options))
    reply = Reply(prefill=response.headers.get("x-penstock-prefill"), decode=response.headers.get("x-penstock-decode"))
    parsed: Any = response.parse()
    for part in parsed if streaming else [parsed]:
        take_completion(reply, part)
    return reply


def chat(client: openai.OpenAI, messages: list[Any], **options: Any) -> Reply:
    """/v1/chat/completions with log-probabilities."""
    streaming = options.get("stream", False)
    extra = {"cache_salt": options.pop("salt", ""), "ignore_eos": options.pop("ignore_eos", True)}
    if streaming:
        options["stream_options"] = {"include_usage": True}
    response = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=messages,
        logprobs=True,
        extra_body=extra,
        **{"temperature": 0, "max_tokens": 24} | options,
    )
    reply = Reply(prefill=response.headers.get("x-penstock-prefill"), decode=response.headers.get("x-penstock-decode"))
    parsed: Any = response.parse()
    for part in parsed if streaming else [parsed]:
        reply.usage = part.usage or reply.usage
        for choice in part.choices:
            answer = reply.answers.setdefault(choice.index, Answer())
            said = choice.delta if streaming else choice.message
            answer.text += said.content or ""
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            if choice.logprobs is not None:
                answer.tokens += [(bytes(one.bytes), one.logprob) for one in choice.logprobs.content]
    return reply


async def stream_completion(client: openai.AsyncOpenAI, prompt: list[int], **options: Any) -> Reply:
    """A stream read to its end or its error, which is kept in `error`, with the time of every event."""
    reply = Reply()
    try:
        async with await client.completions.create(**completion_body(prompt, options | {"stream": True})) as stream:
            async for part in stream:
                take_completion(reply, part)
    except Exception as error:
        reply.error = error
    reply.ended = time.monotonic()
    return reply


def completion_body(prompt: list[int] | str, options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the SDK's `completions.create`."""
    options = dict(options)
    extra = {"cache_salt": options.pop("salt", ""), "ignore_eos": options.pop("ignore_eos", True)}
    if options.get("stream"):
        options["stream_options"] = {"include_usage": True}
    fixed = {"model": MODEL, "prompt": prompt, "logprobs": 0, "extra_body": extra}
    return fixed | {"temperature": 0, "max_tokens": 24} | options


def take_completion(reply: Reply, part: Any) -> None:
    """Adds one event of a stream, or a whole body."""
    reply.usage = part.usage or reply.usage
    for choice in part.choices:
        answer = reply.answers.setdefault(choice.index, Answer())
        answer.text += choice.text
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        if choice.logprobs is not None:
            tokens = choice.logprobs.tokens
            answer.tokens += zip(tokens, choice.logprobs.token_logprobs, strict=True)
            reply.times += [time.monotonic()] * bool(tokens)
