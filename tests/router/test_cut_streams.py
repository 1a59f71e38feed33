"""Promise 2 on the wire: a stream that was cut never looks complete to the stock SDK."""

import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import openai
import pytest

from tests.router import fake_worker as fake
from tests.router.fake_worker import FakeWorker
from tests.router.serving import RunningRouter

MESSAGES = [{"role": "user", "content": "Hello"}]
END = b"data: [DONE]\n\n"


def raw_stream(router: RunningRouter, max_tokens: int = 3) -> bytes:
    """All bytes of a streamed answer, headers included, until the router closes the connection."""
    body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": max_tokens}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    received = b""
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as raw:
        raw.sendall(head + body)
        while not received.endswith(b"0\r\n\r\n"):
            part = raw.recv(65536)
            if not part:
                break
            received += part
    return received


class Replay(socketserver.ThreadingTCPServer):
    """Answers every request with the first `num_bytes` of `data`, then closes politely."""

    allow_reuse_address = True
    daemon_threads = True
    data = b""
    num_bytes = 0


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = http.client.parse_headers(self._after_request_line())
        self.rfile.read(int(request["Content-Length"]))
        assert isinstance(self.server, Replay)
        self.wfile.write(self.server.data[: self.server.num_bytes])

    def _after_request_line(self) -> "socketserver.BufferedIOBase":  # type: ignore[name-defined]
        self.rfile.readline()
        return self.rfile


@contextmanager
def replaying(data: bytes) -> Iterator[Replay]:
    with Replay(("127.0.0.1", 0), _Handler) as server:
        server.data = data
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_stream_cut_at_any_byte_raises_in_the_sdk(router: RunningRouter) -> None:
    data = raw_stream(router)
    assert data.endswith(END + b"\r\n0\r\n\r\n")
    silent = []
    with (
        replaying(data) as server,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        for num_bytes in range(data.index(END) + len(END)):
            server.num_bytes = num_bytes
            try:
                list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
            except Exception:  # what it raises depends on where it was cut; that it raises is the promise
                continue
            silent.append(data[num_bytes - 20 : num_bytes])
        server.num_bytes = len(data)
        assert list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    assert not silent, "cuts here were taken for success"


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_a_stream_that_fails_is_cut_after_its_error_event(
    router: RunningRouter, worker: FakeWorker, num_tokens: int
) -> None:
    worker.scripts.extend([fake.die_after(num_tokens)] * 10)
    data = raw_stream(router, max_tokens=100)
    assert b"[DONE]" not in data
    assert not data.endswith(b"0\r\n\r\n"), "no terminating chunk"
    last_event = data.rstrip().rpartition(b"data: ")[2]
    assert json.loads(last_event)["error"]["code"] == "worker_lost"


def test_a_good_stream_leaves_the_connection_usable(router: RunningRouter) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)) as connection:
        sockets = set()
        for _ in range(3):
            body = json.dumps({"model": "tiny", "messages": MESSAGES, "stream": True})
            connection.request("POST", "/v1/chat/completions", body)
            sockets.add(connection.sock)
            assert connection.getresponse().read().endswith(END)
        assert len(sockets) == 1
