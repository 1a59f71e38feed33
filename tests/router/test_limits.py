"""Every bound, tested with an attack on it."""

import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.router.conftest import TEXTS, StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import LoopThread, RunningRouter, assert_nothing_is_left, hold, wait_until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\n"
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}).encode()


@contextmanager
def connection(router: RunningRouter) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as client:
        yield client


def answer_of(client: socket.socket) -> tuple[int, dict[str, str], dict[str, str]]:
    """Status, headers and the error of an answer after which the connection ends."""
    data = b""
    while part := client.recv(2**16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)["error"]


def received(client: socket.socket, mark: bytes) -> bytes:
    """What comes until `mark` is in it."""
    data = b""
    while mark not in data:
        part = client.recv(2**16)
        assert part, data
        data += part
    return data


def request(body: bytes = BODY, *headers: bytes) -> bytes:
    return b"".join([HEAD, b"content-length: %d\r\n" % len(body), *headers, b"\r\n", body])


def send_for_long(client: socket.socket, data: bytes) -> None:
    for _ in range(2000):
        client.sendall(data)
        time.sleep(0.001)


def asks(router: RunningRouter) -> None:
    """An honest client is served."""
    with connection(router) as client:
        client.sendall(request(BODY, b"connection: close\r\n"))
        data = b""
        while part := client.recv(2**16):
            data += part
        assert json.dumps(TEXTS[0], ensure_ascii=False).encode() in data


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(HEAD + b"x-large: " + b"a" * 5000, id="a header that never ends"),
        pytest.param(HEAD + b"x-large: " + b"a" * 5000 + b"\r\n\r\n", id="a large header in one piece"),
        pytest.param(HEAD + b"".join(b"x-%d: y\r\n" % n for n in range(1000)) + b"\r\n", id="many small headers"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", id="a long path"),
    ],
)
def test_large_headers_are_refused(start_router: StartRouter, worker: FakeWorker, attack: bytes) -> None:
    router = start_router((worker,), max_header_bytes=4096)
    with connection(router) as client:
        client.sendall(attack)
        status, headers, error = answer_of(client)
        assert (status, error["code"], headers["x-should-retry"]) == (431, "headers_too_large", "false")
    asks(router)
    assert_nothing_is_left(router)


def test_headers_within_the_limit_are_taken_however_they_come(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), max_header_bytes=4096)
    with connection(router) as client:
        for _ in range(3):  # one connection: the count begins anew for each request
            for byte in request(BODY, b"x-large: " + b"a" * 3000 + b"\r\n"):
                client.sendall(bytes([byte]))
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("endless", [b"a: b\r\n", b"b"], ids=["many", "one"])
@pytest.mark.parametrize("begun", [b'5\r\n{"a":\r\n0\r\n', b"5;x="], ids=["trailers", "a chunk's extension"])
def test_what_follows_a_part_of_a_body_is_bounded(
    start_router: StartRouter, worker: FakeWorker, begun: bytes, endless: bytes
) -> None:
    router = start_router((worker,), max_header_bytes=4096)
    with connection(router) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + begun + (b"" if b":" in endless else b"a: "))
        with pytest.raises(ConnectionError):
            send_for_long(client, endless * 1000)
    asks(router)


def test_a_trailer_is_no_header(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,))
    trailer = b"x-request-id: from-the-trailer\r\n"
    chunked = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(BODY), BODY, trailer)
    with connection(router) as client:
        client.sendall(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunked)
        data = b""
        while part := client.recv(2**16):
            data += part
    assert data.startswith(b"HTTP/1.1 200")
    assert b"from-the-trailer" not in data


def test_slow_headers_end(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), header_timeout_s=1.5)
    with ExitStack() as stack:
        silent = stack.enter_context(connection(router))
        slow = stack.enter_context(connection(router))
        again = stack.enter_context(connection(router))
        silent.sendall(b"\r\n")  # of no request
        slow.sendall(HEAD)
        again.sendall(request())
        assert again.recv(2**16).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        again.sendall(HEAD)
        assert silent.recv(1) == b""
        for client in (slow, again):
            assert answer_of(client)[0] == 408
        assert time.monotonic() - began < 8
    asks(router)


def test_a_connection_that_is_idle_after_an_answer_is_not_cut(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), header_timeout_s=0.7)
    with connection(router) as client:
        for _ in range(2):
            client.sendall(request())
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
            time.sleep(1.4)


@pytest.mark.parametrize("begun", [b"\r\n", HEAD[:9]], ids=["CRLF", "half a line"])
def test_what_comes_during_an_answer_waits_for_its_end(
    start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread, begun: bytes
) -> None:
    """Also longer than headers may take; then they have that time."""
    router = start_router((worker,), header_timeout_s=0.7)
    worker.gate = hold(worker_loop)
    with connection(router) as client:
        client.sendall(request(BODY[:-1] + b', "stream": true}'))
        data = received(client, b"data: ")
        client.sendall(begun)
        time.sleep(1.5)
        worker_loop.call(worker.gate.set)
        data += received(client, b"\r\n0\r\n\r\n")
        stream, _, _ = data.partition(b"\r\n0\r\n\r\n")
        assert b"[DONE]" in stream
        assert stream.count(b"HTTP/1.1") == 1
        client.sendall(request(BODY, b"connection: close\r\n").removeprefix(begun))
        while part := client.recv(2**16):
            data += part
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200"] * 2


def test_headers_that_began_during_an_answer_end(
    start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread
) -> None:
    router = start_router((worker,), header_timeout_s=0.7)
    worker.gate = hold(worker_loop)
    with connection(router) as client:
        client.sendall(request() + HEAD)
        wait_until(lambda: len(worker.requests) == 1, "the request at the worker")
        worker_loop.call(worker.gate.set)
        data = b""
        while part := client.recv(2**16):
            data += part
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"408"]


def test_an_idle_connection_ends_whatever_line_ends_come(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,))
    router.server.config.timeout_keep_alive = 1
    with connection(router) as client:
        client.sendall(request())
        assert client.recv(2**16).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        client.settimeout(5)
        assert client.recv(1) == b""


def test_slow_bodies_end(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), body_timeout_s=0.5)
    with connection(router) as client:
        client.sendall(request()[:-10])
        status, headers, error = answer_of(client)
        assert (status, error["code"], headers["x-should-retry"]) == (408, "body_timeout", "true")
    assert not worker.requests
    assert_nothing_is_left(router)


def refused(clients: list[socket.socket]) -> list[socket.socket]:
    """Those that have an answer, though their bodies are not complete."""
    return select.select(clients, [], [], 0)[0]


def test_bodies_together_are_bounded(start_router: StartRouter, worker: FakeWorker) -> None:
    """Each is small enough; ten are too many."""
    router = start_router((worker,), max_bodies_bytes=2**20)
    half = request(b" " * 2**18 + BODY)[: -len(BODY)]
    with ExitStack() as stack:
        clients = [stack.enter_context(connection(router)) for _ in range(10)]
        threads = [threading.Thread(target=client.sendall, args=(half,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: router.services.bodies.taken == 2**20, "as many bodies as there is room for")
        wait_until(lambda: len(refused(clients)) == 6, "refusals of the others")
        for client in refused(clients):
            status, headers, error = answer_of(client)
            assert (status, error["code"], headers["x-should-retry"]) == (503, "overloaded", "true")
    wait_until(lambda: router.services.bodies.taken == 0, "release of all bodies")
    asks(router)


def test_requests_without_an_answer_are_bounded(
    router: RunningRouter, worker: FakeWorker, worker_loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Quick answers let in the next read, and with it thousands of requests."""
    one = b"GET /nowhere HTTP/1.1\r\nhost: here\r\n\r\n"
    with connection(router) as client:
        client.sendall(15 * one + b"GET /nowhere HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        assert received(client, b"connection: close").count(b"HTTP/1.1 404") == 16, "a few are served in order"
    worker.gate = hold(worker_loop)
    with connection(router) as client:
        client.sendall(request() + 16 * one)
        with suppress(ConnectionError):
            assert client.recv(1) == b"", "no answer"
    worker.gate = None
    caplog.clear()
    with connection(router) as client, pytest.raises(ConnectionError):
        client.sendall(200_000 * one)
    wait_until(lambda: not router.server.server_state.connections, "the end of the connection")
    assert caplog.text.count("its connection is cut") == 1
    asks(router)


def test_connections_are_bounded(start_router: StartRouter, worker: FakeWorker) -> None:
    router = start_router((worker,), max_connections=20)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connection(router))
        wait_until(lambda: len(router.server.server_state.connections) >= 20, "twenty connections")
        with connection(router) as client:
            status, headers, error = answer_of(client)
            assert (status, error["code"], headers["x-should-retry"]) == (503, "overloaded", "true")
            assert headers["retry-after"] == "1"
    wait_until(lambda: not router.server.server_state.connections, "the end of all")
    asks(router)
