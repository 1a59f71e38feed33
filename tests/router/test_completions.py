"""/v1/completions as the stock SDK sees it, when nothing goes wrong."""

import openai
import pytest
from tokenizers import Tokenizer

from tests.router import fake_worker
from tests.router.conftest import TEXTS
from tests.router.fake_worker import FakeWorker


def test_a_text_prompt_is_tokenized_and_answered(
    client: openai.OpenAI, worker: FakeWorker, tokenizer: Tokenizer
) -> None:
    answer = client.completions.create(model="tiny", prompt="The turbines", max_tokens=200)
    assert answer.choices[0].text == TEXTS[0]
    assert answer.choices[0].finish_reason == "stop"
    assert list(worker.requests[0].prompt) == tokenizer.encode("The turbines").ids
    assert worker.requests[0].sampling.max_tokens == 200


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
        (["T", "a"], None),
    ],
)
def test_every_form_of_prompt_is_taken(
    client: openai.OpenAI, worker: FakeWorker, prompt: list[int], sent: list[tuple[int, ...]] | None
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=100)
    prompts = 1 if isinstance(prompt[0], int) else len(prompt)
    assert [choice.text for choice in answer.choices] == [TEXTS[0], TEXTS[1]] * prompts
    assert [choice.index for choice in answer.choices] == list(range(2 * prompts))
    if sent is not None:
        assert sorted(request.prompt for request in worker.requests) == sent
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(request.prompt) for request in worker.requests)


def test_prompts_of_one_request_stream_side_by_side(client: openai.OpenAI) -> None:
    texts = [""] * 4
    for chunk in client.completions.create(model="tiny", prompt=["one", "two"], n=2, stream=True, max_tokens=100):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [TEXTS[0], TEXTS[1]] * 2


def test_identical_prompts_draw_different_seeds_unless_one_is_given(client: openai.OpenAI, worker: FakeWorker) -> None:
    client.completions.create(model="tiny", prompt=["x", "x"])
    client.completions.create(model="tiny", prompt=["x", "x"], seed=1)
    seeds = [request.samples[0].seed for request in worker.requests]
    assert seeds[0] != seeds[1]
    assert seeds[2] == seeds[3]


def test_logprobs_have_offsets_into_the_text(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="tiny", prompt="x", logprobs=2).choices[0]
    form = choice.logprobs
    assert form is not None
    assert form.tokens
    assert form.text_offset
    assert form.token_logprobs == [-0.5] * len(form.tokens)
    for token, offset in zip(form.tokens, form.text_offset, strict=True):
        assert "\ufffd" in token or choice.text[offset : offset + len(token)] == token
    assert form.text_offset == sorted(form.text_offset)
    assert all(top for top in form.top_logprobs or [])


def test_usage_comes_last_in_a_stream_that_asks_for_it(client: openai.OpenAI, outputs: list[list[int]]) -> None:
    chunks = list(
        client.completions.create(model="tiny", prompt="x", stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(outputs[0])
    assert not chunks[-1].choices


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_that_wait_behind_a_stop_string_are_dropped(
    client: openai.OpenAI, worker: FakeWorker, stream: bool
) -> None:
    """With several prompts the next tokens are already queued when the router finds the stop string."""
    worker.scripts.extend([fake_worker.burst] * 2)
    answer = client.completions.create(model="tiny", prompt=["one", "two"], stop="penstock", stream=stream)
    choices = [choice for chunk in (answer if stream else [answer]) for choice in chunk.choices]
    for index in (0, 1):
        mine = [choice for choice in choices if choice.index == index]
        assert "".join(choice.text for choice in mine) == "The "
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]
