"""SIGTERM: unready at once, open streams may finish, the rest ends in an error event and a cut connection."""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from penstock.listen import free_port
from penstock.router.config import RouterConfig
from tests.router.conftest import TEXTS
from tests.router.fake_worker import FakeWorker
from tests.router.processes import Running, running_process, serve_router
from tests.router.serving import LoopThread, hold, wait_until

MESSAGES = [{"role": "user", "content": "Hello"}]

Start: TypeAlias = Callable[..., AbstractContextManager[tuple[Running, openai.OpenAI]]]


@pytest.fixture
def start(model_folder: Path, worker: FakeWorker) -> Start:
    """Runs a router as a process of its own, with the given settings."""

    @contextmanager
    def running(**settings: float) -> Iterator[tuple[Running, openai.OpenAI]]:
        config = RouterConfig(model=str(model_folder), port=free_port(), decode=worker.url, **settings)  # type: ignore[arg-type]
        with (
            running_process(serve_router, config) as router,
            openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
        ):
            yield router, client

    return running


def test_open_streams_finish_and_then_the_router_exits(
    start: Start, worker: FakeWorker, worker_loop: LoopThread
) -> None:
    worker.gate = gate = hold(worker_loop)
    with start(shutdown_grace_s=10) as (router, client):
        stream = stream_while_terminated(router, client)
        wait_until(lambda: ready_status(router) == 503, "unreadiness")
        worker_loop.call(gate.set)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXTS[0]
        router.process.join(5)
        assert router.process.exitcode == 0


def test_new_requests_are_served_while_load_balancers_notice(start: Start) -> None:
    with start(shutdown_delay_s=1) as (router, client):
        terminate(router)
        wait_until(lambda: ready_status(router) == 503, "unreadiness")
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert answer.choices[0].message.content == TEXTS[0]


def test_then_they_are_sent_elsewhere(start: Start, worker: FakeWorker, worker_loop: LoopThread) -> None:
    """Not cut when the grace ends, after a part of their work."""
    worker.gate = gate = hold(worker_loop)
    with start(shutdown_grace_s=10) as (router, client):
        stream = stream_while_terminated(router, client)
        wait_until(lambda: ready_status(router) == 503, "unreadiness")
        with pytest.raises(openai.InternalServerError, match="router is stopping") as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES)
        headers = caught.value.response.headers
        assert (caught.value.code, headers["x-should-retry"]) == ("stopping", "true")
        assert headers["connection"] == "close", "another router must be asked, not this one again"
        worker_loop.call(gate.set)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXTS[0]


def test_after_the_grace_time_streams_end_in_an_error(
    start: Start, worker: FakeWorker, worker_loop: LoopThread
) -> None:
    worker.gate = hold(worker_loop)
    with start(shutdown_grace_s=0.3) as (router, client):
        stream = stream_while_terminated(router, client)
        with pytest.raises(openai.APIError, match="router is stopping") as caught:
            list(stream)
        assert caught.value.code == "stopping"
        router.process.join(5)
        assert router.process.exitcode == 0
    wait_until(lambda: worker.cancelled == 1, "the cancellation at the worker", timeout_s=1)


def stream_while_terminated(router: Running, client: openai.OpenAI) -> "openai.Stream[ChatCompletionChunk]":
    """A stream that has begun when the router is told to stop."""
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    next(stream)
    terminate(router)
    return stream


def terminate(router: Running) -> None:
    assert router.process.pid is not None
    os.kill(router.process.pid, signal.SIGTERM)


def ready_status(router: Running) -> int:
    try:
        with urllib.request.urlopen(f"{router.url}/ready", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
