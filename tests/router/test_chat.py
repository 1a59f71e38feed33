"""/v1/chat/completions as the stock SDK sees it, when nothing goes wrong."""

import asyncio
import re
from collections.abc import Callable

import openai
import pytest
from tokenizers import Tokenizer

from penstock.protocol import Finished
from penstock.router.index.keys import opaque_salt
from tests.router.conftest import TEXTS, StartRouter
from tests.router.fake_worker import FakeWorker, Stream
from tests.router.serving import LoopThread, RunningRouter, hold, wait_until

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_stream_brings_the_text_and_ends_with_its_reason(client: openai.OpenAI, outputs: list[list[int]]) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXTS[0]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert len(chunks) > 10
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    usage = chunks[-1].usage
    assert usage is not None
    assert not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert usage.completion_tokens == len(outputs[0])
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_a_whole_answer_equals_the_stream(client: openai.OpenAI, outputs: list[list[int]]) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].message.content == TEXTS[0]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(outputs[0])


def test_every_sampling_field_reaches_the_worker(client: openai.OpenAI, worker: FakeWorker) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=-0.25,
        frequency_penalty=0.75,
        logit_bias={"7": -100, "8": 2.5},
        max_completion_tokens=20,
        logprobs=True,
        top_logprobs=4,
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "stop_token_ids": [9, 10],
            "ignore_eos": True,
            "min_tokens": 2,
            "cache_salt": "tenant",
            "priority": -3,
        },
    )
    request = worker.requests[0]
    sent = request.sampling
    assert (sent.temperature, sent.top_p, sent.top_k, sent.min_p) == (0.5, 0.9, 40, 0.05)
    assert (sent.presence_penalty, sent.frequency_penalty, sent.repetition_penalty) == (-0.25, 0.75, 1.1)
    assert (sent.logit_bias, sent.stop_token_ids, sent.ignore_eos) == ({7: -100, 8: 2.5}, (9, 10), True)
    assert (sent.max_tokens, sent.min_tokens, sent.logprobs) == (20, 2, 4)
    assert (request.salt, request.priority) == (opaque_salt("", "tenant"), -3)


def test_defaults_are_openais(client: openai.OpenAI, worker: FakeWorker) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO)
    request = worker.requests[0]
    assert request.sampling.max_tokens == 512 - len(request.prompt), "the rest of the context"
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 1.0, 0)
    assert request.sampling.logprobs is None
    assert 29 < request.timeout_s <= 30, "as long as this client waits"


def test_top_p_of_zero_is_the_likeliest_token(client: openai.OpenAI, worker: FakeWorker) -> None:
    client.chat.completions.create(model="tiny", messages=HELLO, top_p=0)
    assert worker.requests[0].sampling.top_k == 1
    assert worker.requests[0].sampling.top_p == 1.0


def test_a_seed_is_drawn_when_absent_and_kept_when_given(client: openai.OpenAI, worker: FakeWorker) -> None:
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    for _ in range(2):
        client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=-5)
    seeds = [[sample.seed for sample in request.samples] for request in worker.requests]
    assert seeds[0] != seeds[1]
    assert seeds[2] == seeds[3]
    assert len(set(seeds[2])) == 3, "each sample draws from a seed of its own"


def test_n_samples_come_apart(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == list(TEXTS)
    texts = ["", "", ""]
    reasons: list[str | None] = [None] * 3
    for chunk in client.chat.completions.create(model="tiny", messages=HELLO, n=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == list(TEXTS)
    assert reasons == ["stop"] * 3


def test_the_limit_ends_an_answer_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert TEXTS[0].startswith(answer.choices[0].message.content or "?")


def test_a_stop_token_ends_also_where_end_tokens_are_ignored(
    client: openai.OpenAI, outputs: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"ignore_eos": True, "stop_token_ids": outputs[0][-1:]}
    answer = client.chat.completions.create(model="tiny", messages=HELLO, extra_body=extra)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (TEXTS[0], "stop")
    assert "failed a request" not in caplog.text


def test_no_more_of_a_prompt_is_cached_than_it_has(client: openai.OpenAI, worker: FakeWorker) -> None:
    worker.cached_tokens = 2**40
    usage = client.chat.completions.create(model="tiny", messages=HELLO).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens


@pytest.mark.parametrize(("stop", "found"), [("water", "water"), ([" rivers", "你好"], "你好"), ("T", "T")])
def test_stop_strings_cut_the_text(
    client: openai.OpenAI, worker: FakeWorker, stop: str | list[str], found: str
) -> None:
    text = TEXTS[0].partition(found)[0]
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(model="tiny", messages=HELLO, stop=stop)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == worker.cached_tokens, "known without the last frame"


def test_a_sample_that_was_stopped_does_not_hold_up_the_others(
    client: openai.OpenAI, worker: FakeWorker, worker_loop: LoopThread, outputs: list[list[int]]
) -> None:
    """Sample 0 is cut in its first words; the worker would go on with it long after sample 1 is complete."""

    async def script(stream: Stream) -> None:
        await stream.accept()
        first, second = stream.request.samples
        await stream.tokens(first, 0, 10)
        await stream.tokens(second, 0, len(outputs[1]))
        await stream.send(Finished(second.index, "stop"))
        await worker.token_gate(stream)

    worker.gate = hold(worker_loop)
    worker.scripts.append(script)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=2, stop="penstock")
    assert [choice.message.content for choice in answer.choices] == ["The ", TEXTS[1]]
    wait_until(lambda: worker.cancelled == 1, "the cancellation of sample 0 at the worker")


def test_logprobs_belong_to_the_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, stop=["reservoir"]
    ).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    spelt = b"".join(bytes(token.bytes or []) for token in whole.logprobs.content).decode()
    assert spelt.startswith(whole.message.content or "?")
    assert all(len(token.top_logprobs) == 2 for token in whole.logprobs.content)
    assert whole.logprobs.content[0].top_logprobs[0].token == whole.logprobs.content[0].token
    streamed: list[str] = []
    text = ""
    for chunk in client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, stream=True, stop=["reservoir"]
    ):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        if choice.logprobs is not None and choice.logprobs.content is not None:
            streamed += [token.token for token in choice.logprobs.content]
    assert text == whole.message.content
    assert streamed == [token.token for token in whole.logprobs.content]


def test_the_prompt_is_the_rendered_template(client: openai.OpenAI, worker: FakeWorker, tokenizer: Tokenizer) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Hi"},
        ],
    )
    text = "<|im_start|>system\nBe\nbrief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert list(worker.requests[0].prompt) == tokenizer.encode(text, add_special_tokens=False).ids


def test_hints_for_caches_are_taken_and_change_nothing(client: openai.OpenAI, worker: FakeWorker) -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    marked = {"type": "text", "text": "Hello", **hint, "prompt_cache_breakpoint": {"mode": "explicit"}, "x": None}
    for message in (HELLO[0], {**HELLO[0], **hint}, {"role": "user", "content": [marked]}):
        client.chat.completions.create(model="tiny", messages=[message])  # type: ignore[list-item]
    assert len({request.prompt for request in worker.requests}) == 1


def test_answers_come_back_in_the_history_as_sdks_keep_them(client: openai.OpenAI, worker: FakeWorker) -> None:
    answered = client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    plain = {"role": "assistant", "content": answered.content}
    dumped = answered.model_dump()
    assert dumped.keys() > plain.keys()
    kept = {
        **dumped,
        "name": "penny",
        "annotations": [],
        "reasoning_content": "It greets.",
        "parsed": {},
        "token_ids": None,
        "tool_calls": [],
    }
    prompts = []
    for assistant in (plain, dumped, kept):
        client.chat.completions.create(model="tiny", messages=[*HELLO, assistant, *HELLO])
        prompts.append(worker.requests[-1].prompt)
    assert prompts[0] == prompts[1] == prompts[2]


def test_headers_say_who_did_what(
    start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Callable[..., openai.OpenAI]
) -> None:
    decode, prefill = start_worker(), start_worker()
    client = connect(start_router((decode,), (prefill,), policy="least-work"))
    raw = client.chat.completions.with_raw_response
    for stream in (True, False):
        answer = raw.create(
            model="tiny",
            messages=[{"role": "user", "content": f"A prompt of more than one block, please: {stream}" * 3}],
            stream=stream,
            extra_headers={"x-request-id": f"mine-{stream}"},
        )
        assert answer.headers["x-penstock-decode"] == decode.url
        assert answer.headers["x-penstock-prefill"] == prefill.url
        assert answer.headers["x-request-id"] == f"mine-{stream}"
        if stream:
            assert list(answer.parse())
    answer = client.completions.with_raw_response.create(
        model="tiny", prompt="short", extra_headers={"x-request-id": "not an id"}
    )
    assert "x-penstock-prefill" not in answer.headers, "a short prompt runs on the decode worker alone"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert [request.prefill for request in decode.requests] == [prefill.url, prefill.url, None]


def test_asynchronous_clients_share_the_router(router: RunningRouter) -> None:
    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *[client.chat.completions.create(model="tiny", messages=HELLO) for _ in range(50)]
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == [TEXTS[0]] * 50


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        client.models.retrieve("other")


@pytest.mark.parametrize("arguments", ["{", "[" * 50_000, '{"a":' * 50_000])
def test_arguments_that_cannot_be_parsed_stay_text(client: openai.OpenAI, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}, *HELLO]
    assert client.chat.completions.create(model="tiny", messages=messages).choices  # type: ignore[arg-type]
