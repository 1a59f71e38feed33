"""Every kind of bad input: refused in OpenAI's form with the field's name, without reaching a worker."""

import gzip
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeAlias

import openai
import pytest

from penstock.router.config import RouterConfig
from penstock.router.openai import prepare
from penstock.router.openai.requests import decode_request
from tests.router.fake_worker import FakeWorker
from tests.router.serving import LoopThread, RunningRouter, assert_nothing_is_left, hold, running_router, wait_until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = {"model": "tiny", "prompt": "Hello"}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "chat/completions", {**CHAT, **fields}


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[{"role": "assistant", "content": "x", **fields}])


def parts(*content: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[{"role": "user", "content": content}])


def text(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "completions", {**TEXT, **fields}


BAD = [
    # (request, the field named in the error, part of its message)
    (chat(messages=[]), "messages", "empty"),
    (chat(messages="Hello"), "messages", "Expected `array`"),
    (chat(messages=["Hello"]), "messages[0]", "Expected `object`"),
    (chat(messages=[{"content": "x"}]), "messages[0].role", "role"),
    (chat(messages=[{"role": "user"}]), "messages[0].content", "required"),
    (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", "text"),
    (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "messages[0].content[0]",
        "text only",
    ),
    (
        chat(messages=[{"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        "messages[0].tool_calls[0]",
        "function",
    ),
    (parts({"type": "text", "text": "a", "txet": "b"}), "messages[0].content[0].txet", "did you mean 'text'?"),
    (parts({"type": "text", "txet": "b"}), "messages[0].content[0].txet", "did you mean 'text'?"),
    (parts({"type": "text", "text": 5}), "messages[0].content[0].text", "string"),
    (parts({"text": "a"}), "messages[0].content[0]", "type None"),
    (parts({"type": "text", "text": "a", "qwertyuiop": 1}), "messages[0].content[0].qwertyuiop", "not a parameter"),
    (chat(max_completion_tokens=5000), "max_completion_tokens", "max_completion_tokens asks for 5000"),
    (chat(max_completion_tokens=5000, max_tokens=1), "max_completion_tokens", "max_completion_tokens asks for 5000"),
    (chat(max_completion_tokens=2, min_tokens=3), "min_tokens", "more than max_completion_tokens, 2"),
    (message(contnet="y"), "messages[0].contnet", "did you mean 'content'?"),
    (message(qwertyuiop=1), "messages[0].qwertyuiop", "not a parameter"),
    (message(**{"q" * 90_000: 1}), f"messages[0].{'q' * 64}...", "not a parameter"),
    (message(**{"": 1}), "messages[0].", "not a parameter"),
    (message(function_call={"name": "f", "arguments": ""}), "messages[0].function_call", "tool_calls"),
    (message(audio={"id": "a"}), "messages[0].audio", "text only"),
    (chat(messages=[{"role": "user", "content": "word " * 2000}]), "messages", "context holds 512"),
    (chat(messages=[{"role": "user", "content": "w" * 70_000}]), "messages", "70"),
    (chat(tools=[{"type": "function"}]), "tools[0]", "function"),
    (chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name", "string"),
    (chat(tool_choice="required"), "tool_choice", "auto"),
    (chat(n=0), "n", ">= 1"),
    (chat(n=1000), "n", "more than 128"),
    (chat(n=2.5), "n", "Expected `int"),
    (chat(temperature=-0.1), "temperature", ">= 0"),
    (chat(temperature=2.1), "temperature", "<= 2"),
    (chat(temperature="hot"), "temperature", "got `str`"),
    (chat(top_p=1.5), "top_p", "<= 1"),
    (chat(top_p=-1), "top_p", ">= 0"),
    (chat(presence_penalty=2.5), "presence_penalty", "<= 2"),
    (chat(frequency_penalty=-2.5), "frequency_penalty", ">= -2"),
    (chat(repetition_penalty=0), "repetition_penalty", "> 0"),
    (chat(min_p=2), "min_p", "<= 1"),
    (chat(top_k=-2), "top_k", ">= -1"),
    (chat(top_k=2**31), "top_k", "<= 2147483647"),
    (chat(top_k=2**64), "top_k", "top_k"),
    (chat(min_tokens=2**31), "min_tokens", "<= 2147483647"),
    (chat(max_tokens=2**64), "max_tokens", "max_tokens"),
    (chat(priority=-(2**31)), "priority", ">= -2147483647"),
    (chat(max_tokens=0), "max_tokens", ">= 1"),
    (chat(max_tokens=-5), "max_tokens", ">= 1"),
    (chat(max_completion_tokens=0), "max_completion_tokens", ">= 1"),
    (chat(max_tokens=511), "max_tokens", "at most"),
    (chat(max_tokens=10, min_tokens=11), "min_tokens", "more than max_tokens"),
    (chat(seed="lucky"), "seed", "Expected `int"),
    (chat(seed=2**80), "seed", "seed"),
    (chat(logit_bias={"5": 101}), "logit_bias", "<= 100"),
    (chat(logit_bias={"five": 1}), "logit_bias", "not a token id"),
    (chat(logit_bias={"999999": 1}), "logit_bias", "not a token id"),
    (chat(logit_bias={"9" * 5000: 1}), "logit_bias", "not a token id"),
    (chat(logit_bias={"0" * 5000: 1}), "logit_bias", "not a token id"),
    (chat(logit_bias={"0" * 20 + "999999": 1}), "logit_bias", "not a token id"),
    (chat(logit_bias={str(token): 1 for token in range(1025)}), "logit_bias", "<= 1024"),
    (chat(stop_token_ids=[1] * 257), "stop_token_ids", "<= 256"),
    (chat(stop_token_ids=[-1]), "stop_token_ids", "not a token id"),
    (chat(top_logprobs=21, logprobs=True), "top_logprobs", "<= 20"),
    (chat(cache_salt="x" * 1025), "cache_salt", "<= 1024"),
    (chat(top_logprobs=2), "top_logprobs", "needs logprobs"),
    (chat(stop=""), "stop", "1 to 1024"),
    (chat(stop=["x"] * 17), "stop", "at most 16"),
    (chat(stop=[5]), "stop[0]", "Expected `str`"),
    (chat(stop="x" * 1025), "stop", "1 to 1024"),
    (chat(stream="yes"), "stream", "Expected `bool"),
    (chat(stream_options={"include_usages": True}), "stream_options.include_usages", "include_usage"),
    (chat(temprature=1), "temprature", "did you mean 'temperature'?"),
    (chat(qwertyuiop=1), "qwertyuiop", "not a parameter"),
    (chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs", "may not set"),
    (chat(response_format={"type": "json_schema", "json_schema": {}}), "response_format", "not supported"),
    (chat(modalities=["text", "audio"]), "modalities", "text only"),
    (chat(audio={"voice": "alloy"}), "audio", "text only"),
    (chat(function_call={"name": "f"}), "function_call", "tool_choice"),
    (chat(functions=[{"name": "f"}]), "functions", "tools"),
    (chat(store=True), "store", "stores no"),
    (chat(web_search_options={}), "web_search_options", "search"),
    (chat(model=None), "model", "Expected `str`"),
    (("chat/completions", {"messages": CHAT["messages"]}), "model", "required"),
    (("completions", {"model": "tiny"}), "prompt", "required"),
    (text(prompt=[]), "prompt", "empty"),
    (text(prompt=""), "prompt", "no tokens"),
    (text(prompt=[[]]), "prompt[0]", "non-empty"),
    (text(prompt=[1, "a"]), "prompt[0]", "string"),
    (text(prompt=[True]), "prompt[0]", "string"),
    (text(prompt=[1.5]), "prompt[0]", "string"),
    (text(prompt=[-1]), "prompt", "not a token id"),
    (text(prompt=[1, 999999]), "prompt", "not a token id"),
    (text(prompt=[[1], [2**70]]), "prompt[1]", "not a token id"),
    (text(prompt=[1] * 512), "prompt", "context holds 512"),
    (text(prompt="w" * 70_000), "prompt", "70000 characters"),
    (text(prompt=["a"] * 129), "prompt", "more than 128"),
    (text(logprobs=21), "logprobs", "<= 20"),
    (text(best_of=3, n=2), "best_of", "equal n"),
    (text(prompt=[[1]] * 9_000), "prompt", "for each of 9000 prompts"),
    (chat(messages=[{}] * 16_385), "messages", "<= 16384"),
    (chat(tools=[{}] * 1025), "tools", "<= 1024"),
    (chat(chat_template_kwargs={str(number): 1 for number in range(65)}), "chat_template_kwargs", "<= 64"),
    (text(echo=True), "echo", "not repeated"),
    (text(suffix="end"), "suffix", "not before a suffix"),
]


Post: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def worker(worker_loop: LoopThread, outputs: list[list[int]]) -> Iterator[FakeWorker]:
    """One worker for all of this file: no bad request may disturb the next."""
    worker = FakeWorker(outputs)
    worker_loop.run(worker.start())
    yield worker
    worker_loop.run(worker.stop())


@pytest.fixture(scope="module")
def router(worker: FakeWorker, model_folder: Path) -> Iterator[RunningRouter]:
    config = RouterConfig(model=str(model_folder), port=0, decode=worker.url, max_body_bytes=100_000)
    with running_router(config) as router:
        router.wait_ready()
        yield router


@pytest.fixture
def post(router: RunningRouter, worker: FakeWorker) -> Iterator[Post]:
    """Posts raw bytes; afterwards no bad request has reached the worker and a good one is answered."""

    def send(
        path: str, body: bytes | Iterable[bytes], method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
        with closing(connection):
            connection.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    yield send
    assert not worker.requests
    assert send("/v1/completions", json.dumps(TEXT).encode())[0] == 200
    worker.requests.clear()
    assert len(router.services.lifelines) == 0


@pytest.mark.parametrize(
    ("request_", "field", "message"), BAD, ids=[f"{i}-{field}" for i, (_, field, _) in enumerate(BAD)]
)
def test_a_bad_field_is_named(post: Post, request_: tuple[str, dict[str, Any]], field: str, message: str) -> None:
    status, body = post(f"/v1/{request_[0]}", json.dumps(request_[1]).encode())
    assert status == 400
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == field
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("large", [chat(user="x" * 20_000, n=0), text(user="x" * 20_000, n=0)], ids=["chat", "text"])
def test_a_large_body_is_read_aside(
    post: Post, large: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes take seconds to check, in which no stream would go on and every worker would seem silent."""
    readers = []

    def noted(body: bytes, kind: Any) -> Any:
        readers.append(threading.current_thread().name)
        return decode_request(body, kind)

    monkeypatch.setattr(prepare, "decode_request", noted)
    assert post(f"/v1/{large[0]}", json.dumps(large[1]).encode())[0] == 400
    assert len(readers) == 1
    assert readers[0].startswith("encode")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{'model': 'tiny'}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}]} trailing',
        b"NaN",
        b"[" * 50_000,
        b'{"model": "tiny", "messages": ' + b'[{"role":' * 5_000,
        bytes(range(256)),
    ],
    ids=range(16),
)
def test_a_body_that_is_not_a_json_object_in_utf8_is_refused(post: Post, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, answer = post(path, body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (b'"temperature": NaN', "temperature"),
        (b'"temperature": -Infinity', "temperature"),
        (b'"temperature": 1e999', "temperature"),
        (b'"logit_bias": {"5": NaN}', "logit_bias.5"),
        (b'"stop": "\\ud800"', "stop"),
        (b'"stop": ["a", "\\udc00b"]', "stop[1]"),
        (b'"stop": "\xed\xa0\x80"', "stop"),
        (b'"metadata": {"a": ["\\ud800"]}', "metadata.a[0]"),
        (b'"\\ud800": 1', None),
        (b'"stop": "\xff"', None),
        (b'"stop": NaN, "messages": ' + b"[" * 5_000, None),
    ],
)
def test_a_value_that_is_not_json_is_named_where_that_can_be_said(post: Post, fields: bytes, field: str | None) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, answer = post(path, b'{"model": "tiny", ' + fields + b"}")
        assert status == 400
        assert answer["error"]["param"] == field


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it is empty"),
        (b'{"model": "\xff"}', "byte 11 is not UTF-8"),
        (b'{"\\ud800": 1}', "half of a surrogate pair in a field's name"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(post: Post, body: bytes, message: str) -> None:
    status, answer = post("/v1/completions", body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_a_compressed_body_is_refused(post: Post) -> None:
    headers = {"content-encoding": "gzip"}
    status, answer = post("/v1/completions", gzip.compress(json.dumps(TEXT).encode()), **headers)
    assert (status, answer["error"]["message"]) == (415, "compressed bodies are not taken")


def test_an_unknown_model_is_not_found(post: Post) -> None:
    for path, fields in (("chat/completions", CHAT), ("completions", TEXT)):
        status, answer = post(f"/v1/{path}", json.dumps({**fields, "model": "gpt-4"}).encode())
        assert status == 404
        assert (answer["error"]["param"], answer["error"]["code"]) == ("model", "model_not_found")


def test_wrong_paths_and_methods_are_said_in_json(post: Post) -> None:
    status, answer = post("/v1/chat/completionsx", b"{}")
    assert status == 404
    assert "/v1/chat/completionsx" in answer["error"]["message"]
    status, answer = post("/v1/chat/completions", b"", method="GET")
    assert status == 405
    assert "GET" in answer["error"]["message"]
    assert post("/v1/completions/", b"{}")[0] == 404


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_timeout_header_that_is_no_time_is_refused(post: Post, timeout: str) -> None:
    status, answer = post("/v1/completions", json.dumps(TEXT).encode(), timeout=timeout)
    assert status == 400
    assert answer["error"]["param"] == "timeout"


def test_a_long_body_is_refused_before_it_is_read(router: RunningRouter) -> None:
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n{")
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer
    assert b"connection: close" in answer.lower()


BEGUN = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", "TLS and HTTP/2 are not spoken", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 are not spoken", id="HTTP/2"),
        pytest.param(b"GET /v1/models HTTP/2.0\r\nhost: x\r\n\r\n", "version 2.0", id="HTTP/2 as text"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version", id="HTTP/9.9"),
        pytest.param(
            b"CONNECT there:443 HTTP/1.1\r\nhost: there:443\r\n\r\nGET / HTTP/1.1\r\n\r\n", "CONNECT", id="CONNECT"
        ),
        pytest.param(b"GET http://a:99999999/ HTTP/1.1\r\nhost: x\r\n\r\n", "its URL or headers", id="no URL"),
        pytest.param(
            BEGUN + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", "Duplicate Content-Length", id="two lengths"
        ),
        pytest.param(
            BEGUN + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "can't be present",
            id="two ways to end",
        ),
        pytest.param(BEGUN + b"transfer-encoding: chunked\r\n\r\nzz\r\n", "chunk size", id="a chunk of no length"),
        pytest.param(BEGUN + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer coding", id="a coding"),
        pytest.param(
            BEGUN + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "transfer coding",
            id="codings",
        ),
        pytest.param(BEGUN + b"Host: y\r\ncontent-length: 2\r\n\r\n{}", "not 2", id="two hosts"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\n\r\n", "not 0", id="no host"),
        pytest.param(
            b"GET /v1/models HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", "not 0", id="upgrades no host"
        ),
    ],
)
def test_what_is_no_http_is_refused_in_openai_s_form(
    router: RunningRouter,
    post: Post,  # noqa: ARG001
    said: bytes,
    why: str,
) -> None:
    head, body = until_the_end(router, said)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-should-retry: false\r\n" in head
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
    assert why in error["message"]
    assert ("TLS" in error["message"]) is said.startswith((b"\x16", b"PRI"))


def test_of_http_1_0_no_host_is_asked(router: RunningRouter) -> None:
    head, body = until_the_end(router, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["data"]


def test_a_stream_over_http_1_0_has_chunks_so_that_a_cut_is_seen(router: RunningRouter, worker: FakeWorker) -> None:
    body = json.dumps({**TEXT, "stream": True}).encode()
    said = b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    head, answer = until_the_end(router, said)
    worker.requests.clear()
    assert b"\r\ntransfer-encoding: chunked\r\n" in head
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_what_is_no_http_is_refused_in_anthropic_s_form_where_it_says_so(router: RunningRouter) -> None:
    said = BEGUN + b"anthropic-version: 2023-06-01\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"
    head, body = until_the_end(router, said)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert json.loads(body)["type"] == "error"


NEXT = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("stream", [True, False], ids=["begun", "awaited"])
@pytest.mark.parametrize(
    "then",
    [
        pytest.param(b"nonsense\r\n\r\n", id="nonsense"),
        pytest.param(NEXT + b"nonsense\r\n\r\n", id="a request and nonsense"),
        pytest.param(b"GET / HTTP/1.1\r\na: " + b"x" * 2**17, id="large headers"),
    ],
)
def test_no_second_answer_comes_within_one(
    router: RunningRouter, worker: FakeWorker, worker_loop: LoopThread, then: bytes, stream: bool
) -> None:
    worker.gate = hold(worker_loop)
    body = json.dumps({**TEXT, "stream": stream}).encode()
    try:
        with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
            raw.sendall(BEGUN + b"content-length: %d\r\n\r\n%b" % (len(body), body))
            answer = b""
            while stream and b"data: " not in answer:
                answer += raw.recv(65536)
            wait_until(lambda: len(worker.requests) == 1, "the request at the worker")
            with suppress(ConnectionError):
                raw.sendall(then)
                while part := raw.recv(65536):
                    answer += part
    finally:
        worker.gate = None
        worker.requests.clear()
    assert answer.count(b"HTTP/1.1") == stream
    assert_nothing_is_left(router)


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
"""As Java's HttpClient sends with its first request."""
LAST = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n\r\n"


def with_length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length: %d\r\n" % len(body), body


def in_chunks(body: bytes) -> tuple[bytes, bytes]:
    return b"transfer-encoding: chunked\r\n", b"1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:1], len(body) - 1, body[1:])


@pytest.mark.parametrize("framed", [with_length, in_chunks])
@pytest.mark.parametrize("pieces", ["one", "head and body", "bytes"])
@pytest.mark.parametrize(
    ("body", "status"),
    [pytest.param(json.dumps(TEXT).encode(), b"200", id="good"), pytest.param(NEXT, b"400", id="smuggled")],
)
def test_an_upgrade_is_ignored(
    router: RunningRouter,
    worker: FakeWorker,
    framed: Callable[[bytes], tuple[bytes, bytes]],
    pieces: str,
    body: bytes,
    status: bytes,
) -> None:
    """The request is served, with its body; what is in the body is never taken for a request, what follows it is."""
    length, body = framed(body)
    head = BEGUN + UPGRADE + length + b"\r\n"
    said = {"one": [head + body + LAST], "head and body": [head, body + LAST]}.get(pieces) or [
        bytes([byte]) for byte in head + body + LAST
    ]
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in said:
            raw.sendall(piece)
            time.sleep(0.1 / len(said))
        answer = b""
        while part := raw.recv(65536):
            answer += part
    num_requests = len(worker.requests)
    worker.requests.clear()
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [status, b"404"]
    assert num_requests == (status == b"200")


def until_the_end(router: RunningRouter, said: bytes) -> tuple[bytes, bytes]:
    """Head and body of an answer after which the connection ends."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
        raw.sendall(said)
        answer = b""
        while part := raw.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head + b"\r\n", body


def test_a_long_body_without_a_length_is_refused(post: Post) -> None:
    parts = (b" " * 10_000 for _ in range(1000))
    headers = {"Transfer-Encoding": "chunked"}
    status, answer = post("/v1/completions", parts, **headers)
    assert status == 413
    assert answer["error"]["code"] == "request_too_large"


def test_the_sdk_sees_why_ten_megabytes_are_refused(router: RunningRouter, post: Post) -> None:  # noqa: ARG001
    with (
        openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIStatusError, match="longer than 100000 bytes") as caught,
    ):
        client.completions.create(model="tiny", prompt="x" * 10_000_000)
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k", "store": False},
        {"response_format": {"type": "text"}, "safety_identifier": "s", "stop": None, "n": None, "seed": None},
        {"temperature": None, "stream": None, "stream_options": None, "logit_bias": None, "max_tokens": None},
    ],
)
def test_harmless_fields_are_taken(router: RunningRouter, worker: FakeWorker, fields: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client:
        assert client.chat.completions.create(**CHAT, extra_body=fields).choices
        assert client.completions.create(**TEXT, extra_body=fields).choices
    worker.requests.clear()
