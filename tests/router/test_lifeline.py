"""A request ends when its client leaves or its deadline passes, and everything behind it ends with it."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from penstock.errors import Stopping
from penstock.router import connection, outbox
from penstock.router.http import Lifeline, Lifelines
from tests.router.fake_worker import FakeWorker
from tests.router.serving import (
    MESSAGES,
    LoopThread,
    RunningRouter,
    assert_nothing_is_left,
    hold,
    stream_text,
    wait_until,
)


def test_the_deadline_ends_a_request(
    client: openai.OpenAI, worker: FakeWorker, worker_loop: LoopThread, router: RunningRouter
) -> None:
    worker.gate = hold(worker_loop)
    started = time.monotonic()
    with pytest.raises(openai.InternalServerError, match=r"deadline of 0\.4 s") as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_headers={"timeout": "0.4"})
    assert caught.value.status_code == 503
    assert caught.value.code == "deadline_exceeded"
    with pytest.raises(openai.APIError, match=r"deadline of 0\.4 s"):
        stream_text(client, extra_headers={"timeout": "0.4"})
    assert time.monotonic() - started < 2
    wait_until(lambda: worker.cancelled == 2, "the cancellation at the worker", timeout_s=1)
    assert all(request.timeout_s < 0.401 for request in worker.requests)
    assert_nothing_is_left(router)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_the_worker_within_a_second(
    client: openai.OpenAI, worker: FakeWorker, worker_loop: LoopThread, router: RunningRouter, stream: bool
) -> None:
    worker.gate = hold(worker_loop)
    if stream:
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):  # whoever looks at the clock first
            client.with_options(timeout=0.3).chat.completions.create(model="tiny", messages=MESSAGES)
    wait_until(lambda: worker.cancelled == 1, "the cancellation at the worker", timeout_s=1)
    assert_nothing_is_left(router)


@pytest.mark.parametrize("stream", [True, False])
def test_so_does_one_that_has_sent_its_next_request_already(
    worker: FakeWorker, worker_loop: LoopThread, router: RunningRouter, stream: bool
) -> None:
    worker.gate = hold(worker_loop)
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
        raw.sendall(head + body + b"GET /v1/models HTTP/1.1\r\nhost: here\r\n\r\n")
        wait_until(lambda: worker.running == 1, "the first request at the worker")
    wait_until(lambda: worker.cancelled == 1, "the cancellation at the worker", timeout_s=1)
    assert_nothing_is_left(router)


def test_what_is_answered_is_cut_no_more() -> None:
    async def test() -> None:
        lifelines = Lifelines()
        async with Lifeline(asyncio.Queue().get, 0.05, lifelines) as lifeline:
            lifeline.answered()
            lifelines.cut_all(Stopping("the grace is over"))
            await asyncio.sleep(0.1)
            assert len(lifelines) == 1, "the router waits for what is still to be counted"

    asyncio.run(test())


@contextmanager
def deaf_client(router: RunningRouter, worker: FakeWorker, outputs: list[list[int]]) -> Iterator[socket.socket]:
    """A client that has sent a request with a large answer, over 10 MB, and does not read."""
    worker.texts = [outputs[0][:-1] * 40]
    fields = {"n": 16, "logprobs": True, "top_logprobs": 20, "stream": True, "max_tokens": 450}
    body = json.dumps({"model": "tiny", "messages": MESSAGES, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ntimeout: 4\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as raw:
        raw.settimeout(10)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", router.port))
        raw.sendall(head.encode() + body)
        wait_until(lambda: len(worker.requests) == 1, "the request's arrival")
        yield raw


def read_on(raw: socket.socket) -> bytes:
    """What comes until the last event or the connection's end; its last bytes, and "reset" if it ended so."""
    tail = b""
    try:
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and (part := raw.recv(2**20)):
            tail = (tail + part)[-100:]
    except ConnectionResetError:
        return tail + b"reset"
    return tail


def outcomes(router: RunningRouter, status: str) -> float:
    return float(router.services.metrics.requests.labels(endpoint="chat", status=status)._value.get())


def assert_no_fault_of(worker: FakeWorker, router: RunningRouter) -> None:
    assert [(one.losses, one.arrival) for one in router.services.cluster.workers] == [(0, 1)]
    assert len(worker.requests) == 1, "it was not placed again"


def test_a_client_that_does_not_read_is_ended_at_its_deadline(
    worker: FakeWorker, router: RunningRouter, outputs: list[list[int]]
) -> None:
    with deaf_client(router, worker, outputs):
        wait_until(lambda: outcomes(router, "503") == 1, "the end by its deadline")
        assert_nothing_is_left(router)


def test_a_client_that_accepts_nothing_is_cut_and_no_worker_is_blamed(
    worker: FakeWorker,
    router: RunningRouter,
    outputs: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    with deaf_client(router, worker, outputs) as raw:
        wait_until(lambda: outcomes(router, "client_gone") == 1, "the cut")
        assert_nothing_is_left(router)
        wait_until(lambda: worker.running == 0, "the end at the worker")
        assert read_on(raw).endswith(b"reset"), "a mere close is the good end of an HTTP/1.0 answer"
    assert_no_fault_of(worker, router)
    assert "accepted nothing for 0.3 s" in caplog.text


def test_a_client_that_pauses_holds_up_no_worker(
    worker: FakeWorker, router: RunningRouter, outputs: list[list[int]]
) -> None:
    with deaf_client(router, worker, outputs) as raw:
        wait_until(lambda: worker.running == 0, "the end at the worker, while the client pauses", timeout_s=3.5)
        assert b"[DONE]" in read_on(raw)
    assert (worker.cancelled, outcomes(router, "200")) == (0, 1)
    assert_no_fault_of(worker, router)


def test_a_client_that_falls_too_far_behind_is_cut(
    worker: FakeWorker, router: RunningRouter, outputs: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_BEHIND_BYTES", 2**20)
    with deaf_client(router, worker, outputs) as raw:
        wait_until(lambda: outcomes(router, "client_slow") == 1, "the cut")
        wait_until(lambda: worker.running == 0, "the end at the worker", timeout_s=1)
        assert_nothing_is_left(router)
        assert b"[DONE]" not in read_on(raw)
    assert_no_fault_of(worker, router)


def test_the_deadline_covers_the_body(router: RunningRouter, worker: FakeWorker) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\ntimeout: 0.4\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port), timeout=5) as raw:
        raw.sendall(head + b'{"model"')
        wait_until(lambda: len(router.services.lifelines) == 1, "the request's arrival, before its body")
        raw.sendall(b':"tiny"')
        answer = b"".join(iter(lambda: raw.recv(65536), b""))  # to the connection's end: the body has no end
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"deadline_exceeded" in answer
    assert_nothing_is_left(router)
    assert not worker.requests


def test_a_client_that_leaves_while_sending_is_forgotten(router: RunningRouter) -> None:
    with socket.create_connection(("127.0.0.1", router.port), timeout=5) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        wait_until(lambda: len(router.services.lifelines) == 1, "the request's arrival")
    assert_nothing_is_left(router)
