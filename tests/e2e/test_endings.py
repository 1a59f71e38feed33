"""A stream ends with its last event, with an error event, or in a reset: the stock SDK never takes a part for all."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.client import completion, new_client, random_prompt
from tests.e2e.conftest import Deploy
from tests.e2e.deployment import Deployment
from tests.e2e.processes import send_signal
from tests.e2e.proxy import Proxy, proxied
from tests.e2e.stopwatch import Stopwatch

PROMPT = random_prompt(50, seed=5)
MESSAGES: list[Any] = [{"role": "user", "content": "Where do the blocks flow?"}]


@pytest.fixture(scope="module")
def pair(deploy_for_module: Deploy) -> Deployment:
    return deploy_for_module(router={"shutdown_grace_s": 0.1, "stream_wait_s": 1.0})


@pytest.fixture(scope="module")
def wire(pair: Deployment) -> Iterator[Proxy]:
    """A proxy between client and router."""
    with proxied() as (_, proxies, reached_at):
        reached_at("router", pair.url)
        yield proxies["router"]


def open_stream(client: openai.OpenAI, endpoint: str, max_tokens: int = 8) -> Any:
    create: Any = client.chat.completions.create if endpoint == "chat" else client.completions.create
    prompt: Any = {"messages": MESSAGES} if endpoint == "chat" else {"prompt": PROMPT}
    extra = {"ignore_eos": True}
    return create(model="model", stream=True, max_tokens=max_tokens, temperature=0, extra_body=extra, **prompt)


def ask(client: openai.OpenAI, endpoint: str) -> str:
    """The text of a stream that the SDK read to its end, which it must have said to be one."""
    text, reason = "", None
    with open_stream(client, endpoint) as stream:
        for part in stream:
            choice = part.choices[0]
            text += (choice.delta.content or "") if endpoint == "chat" else choice.text
            reason = choice.finish_reason or reason
    assert reason == "length", "the SDK took a part for all"
    return text


def num_bytes_of(client: openai.OpenAI, endpoint: str) -> int:
    """Length of the whole answer, head and events."""
    with open_stream(client, endpoint) as stream:
        head = sum(len(f"{name}: {value}\r\n") for name, value in stream.response.headers.items())
        events = b"".join(stream.response.iter_raw())
    assert events.endswith(b"data: [DONE]\n\n")
    return head + len(events)


def error_of(stream: Any) -> Exception | None:
    """What reading the rest of a stream raises: an error of the SDK, or of the HTTP library below it."""
    try:
        list(stream)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("politely", [False, True], ids=["reset", "closed"])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_cut_stream_raises_in_the_sdk(wire: Proxy, endpoint: str, politely: bool) -> None:
    with new_client(wire.url) as client:
        size = num_bytes_of(client, endpoint)
        whole = ask(client, endpoint)
    num_raised = 0
    wire.cut_politely = politely
    # All over the answer, and densely around its end (chunk sizes come on top of `size`).
    for wire.cut_after in [*range(1, size, size // 20), *range(size - 10, size + 300, 16)]:
        with new_client(wire.url) as client:
            try:
                text = ask(client, endpoint)
            except AssertionError:
                raise
            except Exception:  # the SDK's errors, or those of the HTTP library below it
                num_raised += 1
            else:
                assert text == whole
    wire.cut_after = None
    assert num_raised >= 20


def test_with_no_worker_left_streams_end_in_an_error_event_and_new_requests_are_told_when_to_retry(
    pair: Deployment,
) -> None:
    [decode] = pair.decode
    with new_client(pair.url) as client:
        stream = open_stream(client, "completions", max_tokens=1500)
        next(stream)
        send_signal(decode.process.front, signal.SIGKILL)
        killed = Stopwatch()
        error = error_of(stream)
        assert killed.elapsed_s < 2.0
        assert isinstance(error, openai.APIError)
        assert not isinstance(error, openai.APIConnectionError), "an error event should have come"
        with pytest.raises(openai.APIStatusError) as refused:
            completion(client, PROMPT)
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
        decode.restart()
        pair.wait_ready()
        assert completion(client, PROMPT).answer.finish_reason == "length"
    pair.assert_quiet()


def test_a_stream_waits_for_the_only_worker_to_come_back(deploy: Deploy) -> None:
    deployment = deploy(prefill=0)
    [decode] = deployment.decode
    with new_client(deployment.url) as client:
        whole = completion(client, PROMPT, max_tokens=600).answer.text
        stream = open_stream(client, "completions", max_tokens=600)
        text = next(stream).choices[0].text
        send_signal(decode.process.front, signal.SIGKILL)
        time.sleep(2.0)
        decode.restart()
        assert text + "".join(part.choices[0].text for part in stream) == whole
    deployment.assert_quiet()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopping_router_leaves_no_stream_that_looks_complete(deploy: Deploy, number: signal.Signals) -> None:
    deployment = deploy(prefill=0, router={"shutdown_grace_s": 0.1})
    with new_client(deployment.url) as client:
        stream = open_stream(client, "completions", max_tokens=1500)
        next(stream)
        send_signal(deployment.router.front, number)
        assert error_of(stream) is not None
    [decode] = deployment.decode
    deadline = time.monotonic() + 1.0
    while left := decode.left_over():
        assert time.monotonic() < deadline, f"the stream's end freed nothing: {left}"
