"""Flow control as clients see it: the stock SDK in front, fake workers behind."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.router import fake_worker as fake
from tests.router.conftest import TEXTS, StartRouter
from tests.router.fake_worker import FakeWorker, Script, Stream
from tests.router.serving import (
    MESSAGES,
    LoopThread,
    assert_nothing_is_left,
    hold,
    stream_text,
    wait_until,
)

KEYS = {"search": "sk-search", "batch": "sk-batch"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key file: search may ask five times a minute, batch for 600 tokens."""
    path = tmp_path / "keys.toml"
    path.write_text(
        f"""
        [search]
        key_sha256 = ["{hashlib.sha256(b"sk-search").hexdigest()}"]
        requests_per_minute = 5
        salt = "of the search team"
        priority = -3
        [batch]
        key_sha256 = ["{hashlib.sha256(b"sk-batch").hexdigest()}"]
        tokens_per_minute = 600
        """
    )
    return path


@pytest.fixture
def connect_with() -> Iterator[Callable[..., openai.OpenAI]]:
    """The stock SDK with a key and its own retries."""
    with ExitStack() as stack:
        yield lambda router, key="none", **options: stack.enter_context(
            openai.OpenAI(base_url=f"{router.url}/v1", api_key=key, **options)
        )


ConnectWith = Callable[..., openai.OpenAI]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, **options)  # type: ignore[call-overload]


def slow(seconds: float) -> Script:
    """The good case, with so long a prefill."""

    async def script(stream: Stream) -> None:
        await stream.accept()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.05)
            await stream.send(fake.Heartbeat(step=1, step_s=0.0, predicted_s=0.0))
        await stream.finish()

    return script


def test_only_known_keys_may_ask(
    start_router: StartRouter, worker: FakeWorker, keys: Path, connect_with: ConnectWith
) -> None:
    router = start_router((worker,), keys=str(keys))
    for key in ("none", "sk-search2", hashlib.sha256(b"sk-search").hexdigest()):
        client = connect_with(router, key)
        for wrong in (lambda client=client: ask(client), lambda client=client: client.models.list()):
            with pytest.raises(openai.AuthenticationError) as caught:
                wrong()
            assert caught.value.code == "invalid_api_key"
            assert caught.value.response.headers["x-should-retry"] == "false"
    assert not worker.requests
    assert ask(connect_with(router, "sk-search")).parse().choices[0].message.content == TEXTS[0]
    assert [model.id for model in connect_with(router, "sk-batch").models.list()] == ["tiny"]


def test_tenants_have_their_own_salt_and_class(
    start_router: StartRouter, worker: FakeWorker, keys: Path, connect_with: ConnectWith
) -> None:
    router = start_router((worker,), keys=str(keys))
    search, batch = connect_with(router, "sk-search"), connect_with(router, "sk-batch")
    for client in (search, batch):
        ask(client)
        ask(client, extra_body={"cache_salt": "x", "priority": -1000})
    salts = [request.salt for request in worker.requests]
    assert len(set(salts)) == 4
    assert salts[2] == "", "batch shares blocks with all who have no salt"
    assert "of the search team" not in salts[0] + salts[1]
    assert {request.priority for request in worker.requests[:2]} <= {-6, -5}
    assert {request.priority for request in worker.requests[2:]} <= {0, 1}, "a tenant's own priority is its own affair"


def test_requests_beyond_the_quota_are_refused_in_openais_form(
    start_router: StartRouter, worker: FakeWorker, keys: Path, connect_with: ConnectWith
) -> None:
    client = connect_with(start_router((worker,), keys=str(keys)), "sk-search", max_retries=0)
    left = [ask(client).headers["x-ratelimit-remaining-requests"] for _ in range(5)]
    assert left == ["4", "3", "2", "1", "0"]
    with pytest.raises(openai.RateLimitError, match="search may ask for 5 requests per minute") as caught:
        ask(client)
    headers = caught.value.response.headers
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "rate_limit_error"
    assert headers["x-should-retry"] == "true"
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 3 <= float(headers["retry-after"]) <= 12
    assert 0 <= 1000 * float(headers["retry-after"]) - float(headers["retry-after-ms"]) < 1000
    assert len(worker.requests) == 5


def test_what_no_worker_has_begun_is_not_counted(
    start_router: StartRouter, worker: FakeWorker, keys: Path, connect_with: ConnectWith
) -> None:
    router = start_router((worker,), keys=str(keys), worker_wait_s=30.0)
    client = connect_with(router, "sk-search", max_retries=0)
    worker.ready = False
    wait_until(lambda: not router.services.ready, "unreadiness")
    with pytest.raises(openai.InternalServerError, match="the request's deadline"):
        ask(client, extra_headers={"timeout": "0.3"})
    worker.ready = True
    assert ask(client).headers["x-ratelimit-remaining-requests"] == "4"


def test_tokens_count_as_used_and_not_as_feared(
    start_router: StartRouter, worker: FakeWorker, keys: Path, connect_with: ConnectWith
) -> None:
    client = connect_with(start_router((worker,), keys=str(keys)), "sk-batch", max_retries=0)
    first = ask(client)
    usage = first.parse().usage
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 600 - usage.total_tokens
    left = int(ask(client, max_tokens=1).headers["x-ratelimit-remaining-tokens"])
    assert 600 - usage.total_tokens - usage.prompt_tokens - 3 <= left < 600 - usage.prompt_tokens
    with pytest.raises(openai.RateLimitError, match=r"may have .* tokens, but the quota of batch is 600") as caught:
        ask(client, n=3)
    assert caught.value.response.headers["x-should-retry"] == "false", "no waiting will help"


def test_an_answer_is_one_also_when_its_tokens_take_long_to_count(
    start_router: StartRouter,
    worker: FakeWorker,
    keys: Path,
    connect_with: ConnectWith,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with a Redis: by then the client, which has everything, may have left."""
    router = start_router((worker,), keys=str(keys))
    buckets = router.services.quotas._buckets
    take = buckets.take

    async def take_late(*what: Any) -> Any:
        await asyncio.sleep(0.05)
        return await take(*what)

    monkeypatch.setattr(buckets, "take", take_late)
    assert ask(connect_with(router, "sk-batch")).status_code == 200
    assert_nothing_is_left(router)
    outcomes = router.services.metrics.requests.collect()[0].samples
    assert {sample.labels["status"]: sample.value for sample in outcomes if sample.name.endswith("_total")} == {
        "200": 1
    }


def test_the_sdk_waits_as_it_is_told_and_is_let_in(
    start_router: StartRouter, worker: FakeWorker, tmp_path: Path, connect_with: ConnectWith
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"[a]\nkey_sha256 = ['{hashlib.sha256(b'k').hexdigest()}']\nrequests_per_minute = 60")
    client = connect_with(start_router((worker,), keys=str(path)), "k", max_retries=2)
    while ask(client).headers["x-ratelimit-remaining-requests"] != "0":
        pass
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(client), range(4)))
    assert 2 < time.monotonic() - began < 8, "one a second, though they are equal"
    retries = [answer.retries_taken for answer in answers]
    assert 3 <= sum(retries) <= 5, "one may have come just when there was one more, or so late that its turn was over"


def test_the_sdk_repeats_nothing_that_is_permanent(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith
) -> None:
    router = start_router((worker,))
    client = connect_with(router, max_retries=3)
    worker.scripts.extend([fake.refuse("prompt")] * 4)
    with pytest.raises(openai.BadRequestError):
        ask(client)
    assert len(worker.requests) == 1
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="another", messages=MESSAGES)
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError) as caught:
        client.post("/nowhere", cast_to=object)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_bug_is_not_worth_another_try(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = start_router((worker,))
    tries: list[int] = []

    def broken(*_: object, **__: object) -> None:
        tries.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(router.services.placer.gate, "check", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(connect_with(router, max_retries=3))
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(tries) == 1


def test_the_sdk_comes_back_when_a_worker_does(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith
) -> None:
    async def busy(_: Stream) -> web.Response:
        return web.Response(status=503, body=b'{"message": "full", "code": "overloaded", "retry_after_s": 1.75}')

    client = connect_with(start_router((worker,)), max_retries=1)
    ask(client)  # the SDK's first request takes it a second
    worker.scripts.append(busy)
    began = time.monotonic()
    answer = ask(client)
    assert answer.retries_taken == 1
    assert 1.75 <= time.monotonic() - began < 2.75, "as the worker said, to the millisecond and not rounded up"


def test_one_piece_has_as_long_as_the_sdk_waits_and_a_stream_as_long_as_it_lives(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith
) -> None:
    router = start_router((worker,))
    client = connect_with(router, max_retries=0, timeout=7)
    ask(client)
    ask(client, timeout=5)
    ask(client, timeout=5, extra_headers={"timeout": "60"})
    ask(client, stream=True)
    assert [round(request.timeout_s) for request in worker.requests] == [7, 5, 60, 600]


def test_no_work_goes_on_for_a_client_that_has_given_up(
    start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread, connect_with: ConnectWith
) -> None:
    router = start_router((worker,))
    worker.gate = hold(worker_loop)
    with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):  # whoever looks at the clock first
        ask(connect_with(router, max_retries=0, timeout=1))
    wait_until(lambda: worker.cancelled == 1, "the end of the work")
    assert_nothing_is_left(router)


def test_a_silent_stream_says_that_it_lives_before_the_sdk_gives_up(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith
) -> None:
    """Also before its first token, and between tokens."""
    client = connect_with(start_router((worker,)), max_retries=0, timeout=1)
    worker.scripts.append(slow(3))
    assert stream_text(client) == [TEXTS[0]]


def test_comments_keep_a_raw_stream_alive_at_the_configured_pace(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), silence_s=0.4)
    worker.scripts.append(slow(2))

    async def read() -> list[tuple[float, bytes]]:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{router.url}/v1/chat/completions", json=body) as answer,
        ):
            return [(time.monotonic(), line) async for line in answer.content]

    began = time.monotonic()
    lines = asyncio.run(read())
    times = [began, *(at for at, _ in lines)]
    assert max(after - before for before, after in itertools.pairwise(times)) < 1.2
    comments = [line for _, line in lines if line.startswith(b":")]
    assert set(comments) == {b": keep-alive\n"}
    assert 2 <= len(comments) <= 10
    assert lines[-2][1] == b"data: [DONE]\n"
    assert sum(line.startswith(b"data:") for _, line in lines) > 5


def test_an_early_opened_stream_that_fails_says_so_in_an_event(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.router.generation._CLOCKS_S", 600)

    async def late_refusal(stream: Stream) -> None:
        await stream.accept()
        for _ in range(20):
            await asyncio.sleep(0.05)
            await stream.send(fake.Heartbeat(step=1, step_s=0.0, predicted_s=0.0))
        await stream.send(fake.Error(code="deadline_exceeded", message="too late"))

    worker.scripts.append(late_refusal)
    client = connect_with(start_router((worker,), silence_s=0.2), max_retries=2)
    with pytest.raises(openai.APIError, match="too late; try again in 1 s"):
        stream_text(client)
    assert len(worker.requests) == 1, "a stream that has begun is not repeated by the SDK"


def test_more_streams_than_a_worker_batches_wait_in_the_router(
    start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread, connect_with: ConnectWith
) -> None:
    worker.max_samples = 2
    router = start_router((worker,))
    client = connect_with(router, max_retries=0)
    ask(client)  # the SDK's first request takes it a second
    worker.gate = hold(worker_loop)
    worker.requests.clear()
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, client, user=str(number)) for number in range(6)]
        wait_until(lambda: len(router.services.placer.gate) == 4, "four in the queue")
        wait_until(lambda: len(worker.requests) == 2, "two at the worker")
        assert "penstock_router_queued_requests 4.0" in router.services.metrics.render().decode()
        worker_loop.call(worker.gate.set)
        for one in asking:
            assert one.result().parse().choices[0].message.content == TEXTS[0]
    assert max(worker.most_running, 2) == 2
    assert_nothing_is_left(router)


def test_who_leaves_the_queue_leaves_nothing(
    start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread, connect_with: ConnectWith
) -> None:
    worker.max_samples = 1
    router = start_router((worker,))
    worker.gate = hold(worker_loop)
    patient, hasty = connect_with(router, max_retries=0), connect_with(router, max_retries=0, timeout=1)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, patient)
        wait_until(lambda: len(worker.requests) == 1, "the first request")
        others = [pool.submit(ask, hasty) for _ in range(3)]
        wait_until(lambda: len(router.services.placer.gate) == 3, "three in the queue")
        for one in others:
            with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
                one.result()
        wait_until(lambda: len(router.services.placer.gate) == 0, "an empty queue")
        worker_loop.call(worker.gate.set)
        first.result()
    assert len(worker.requests) == 1
    assert_nothing_is_left(router)


def test_what_would_wait_too_long_is_refused_at_once_and_let_in_when_it_comes_back(
    start_router: StartRouter, worker: FakeWorker, connect_with: ConnectWith
) -> None:
    """A worker that takes a request at a time, 0.1 s each, and three times as many clients as it can serve."""
    worker.max_samples = 1
    router = start_router((worker,), max_wait_s=0.5)
    client = connect_with(router, max_retries=1, timeout=60)
    ask(client)
    worker.scripts.extend([slow(0.1)] * 1000)
    refused: list[float] = []
    retries: list[int] = []

    def run(number: int) -> None:
        time.sleep(number * 0.04)
        began = time.monotonic()
        with suppress(openai.APIStatusError):
            answer = ask(client, user=str(number))
            retries.append(answer.retries_taken)
            return
        refused.append(time.monotonic() - began)

    with ThreadPoolExecutor(60) as pool:
        list(pool.map(run, range(60)))
    came_back = sum(retries) + len(refused)
    print(f"{came_back} of 60 were refused at first and came back; {sum(retries)} of them were let in")
    assert came_back > 15
    assert sum(retries) >= 0.9 * came_back
    assert_nothing_is_left(router)
