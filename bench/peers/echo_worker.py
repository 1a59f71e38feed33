"""A worker that computes nothing, in two dialects: Penstock's own frames, and OpenAI's HTTP for other gateways.

    python -m bench.peers.echo_worker PORT PACE_S

Each answer has as many tokens as the request's max_tokens, one per event, PACE_S apart. As little
Python as possible runs per request, so that what is measured is the gateway in front of it.
"""

import asyncio
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import msgspec
import uvloop

from bench.load import quick_ack
from penstock.hop import Readiness
from penstock.protocol import Accepted, Done, Events, Finished, Tokens, encode_line

TOKEN_ID = 300
"""Any ordinary token of the model that our router serves."""
BEAT_S = 0.2

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max(?:_completion)?_tokens": *(\d+)')
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LINES = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
_ACCEPTED = encode_line(Accepted("echo"))
_CREATED = '"created":1700000000,"model":"echo"'
_CHAT = '{"id":"chatcmpl-1","object":"chat.completion.chunk",' + _CREATED
_TEXT = '{"id":"cmpl-1","object":"text_completion",' + _CREATED


def _event(body: str) -> bytes:
    return f"data: {body}\n\n".encode()


def _chat(delta: str, reason: str) -> bytes:
    return _event(f'{_CHAT},"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]}}')


def _text(text: str, reason: str) -> bytes:
    return _event(f'{_TEXT},"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{reason}}}]}}')


_DONE = b"data: [DONE]\n\n"
DIALECTS: dict[bytes, tuple[bytes, Callable[[int], bytes], Callable[[int], bytes]]] = {
    b"/v1/chat/completions": (
        _chat('{"role":"assistant","content":""}', "null"),
        lambda _: _chat('{"content":" the"}', "null"),
        lambda _: _chat("{}", '"length"') + _DONE,
    ),
    b"/v1/completions": (b"", lambda _: _text(" the", "null"), lambda _: _text("", '"length"') + _DONE),
    b"/generate": (
        _ACCEPTED,
        lambda position: encode_line(Tokens(0, position, (TOKEN_ID,), (), 0 if position == 0 else None)),
        lambda _: encode_line(Finished(0, "length")) + encode_line(Done()),
    ),
}
"""By path: what comes before the first token, a token, and what comes after the last."""

_MODELS = b'{"object":"list","data":[{"id":"echo","object":"model","created":1700000000,"owned_by":"echo"}]}'
_INFO = b'{"model_path":"echo","served_model_name":"echo","tokenizer_path":"","is_generation":true,"version":"0"}'
_READY = msgspec.json.encode(Readiness(True, 100_000, 128))
PAGES = {b"/ready": _READY, b"/v1/models": _MODELS, b"/health": b"{}"}


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the cause does not matter
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        quick_ack(self._transport)
        if data.startswith(b"PRI "):  # HTTP/2, which some try first
            self._transport.close()
            return
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None and b"ransfer-" in head:  # a chunked request body: ours and others' clients stream it
            body, found, rest = rest.partition(b"0\r\n\r\n")
            if not found:
                return
        else:
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            body, rest = rest[:size], rest[size:]
        self._buffer = rest
        self._answer(head.split(b" ", 2)[1].partition(b"?")[0], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path == b"/events":
            self._transport.write(_LINES + _chunk(encode_line(Events(generation="echo", sequence=0, snapshot=True))))
            self._beat(1)
        elif path in DIALECTS:
            asked = _MAX_TOKENS.search(body)
            self._stream(path, int(asked[1]) if asked else 1)
        else:
            page = PAGES.get(path, _INFO)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(page) + page)

    def _stream(self, path: bytes, num_tokens: int) -> None:
        before, token, after = DIALECTS[path]
        head = _LINES if path == b"/generate" else _SSE
        if num_tokens == 1:  # the last token is the first: all in one piece
            parts = [_chunk(part) for part in (before, token(0), after(0)) if part]
            self._transport.write(b"".join((head, *parts, b"0\r\n\r\n")))
            return
        self._transport.write(head + (_chunk(before) if before else b""))
        began = self._loop.time()

        def step(position: int) -> None:
            if position == num_tokens:
                self._transport.write(_chunk(after(0)) + b"0\r\n\r\n")
                return
            self._transport.write(_chunk(token(position)))
            self._timer = self._loop.call_at(began + (position + 1) * self._pace_s, step, position + 1)

        step(0)

    def _beat(self, sequence: int) -> None:
        """Our own routers subscribe to a worker's events: an empty cache that never changes."""
        if not self._transport.is_closing():
            if sequence > 1:
                self._transport.write(_chunk(encode_line(Events(generation="echo", sequence=sequence - 1))))
            self._timer = self._loop.call_later(BEAT_S, self._beat, sequence + 1)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def main(port: int, pace_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pace_s), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
