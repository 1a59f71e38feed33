"""The calling side of a hop, where the other side is not a well-behaved worker."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from penstock import hop
from penstock.errors import Overloaded, PrefillLost, WorkerLost, WorkerSilent
from penstock.hop import MAX_LINE_BYTES
from penstock.protocol import Accepted, BlockTicket, Ticket, encode_line, error_frame
from tests.worker.requests import call, request, run


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The URL of a server that has `answer` serve calls of /prefill."""
    app = web.Application()
    app.router.add_post("/prefill", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def read_tickets(
    *lines: bytes, pieces: int = 1, pause_s: float = 0.0, path: str = "/prefill", max_line_bytes: int = MAX_LINE_BYTES
) -> list[object]:
    """What a hop reads from a server that answers calls of /prefill with an accepted frame and `lines`, each in so many
    pieces with a pause after each."""

    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        await response.write(encode_line(Accepted("g")))
        for line in lines:
            size = -(-len(line) // pieces)
            for start in range(0, len(line), size):
                await response.write(line[start : start + size])
                await asyncio.sleep(pause_s)
        return response

    frames: list[object] = []
    async with serving(answer) as url, call(url + path, request(), max_line_bytes=max_line_bytes) as stream:
        async for frame in stream.frames():
            frames.append(frame)
            if len(frames) == len(lines):
                break
    return frames


def test_a_ticket_of_five_mebibytes_is_read() -> None:
    blocks = tuple(BlockTicket(index, 7, b"%16d" % index) for index in range(150_000))
    ticket = Ticket(generation="g", first_position=0, blocks=blocks, last=True)
    line = encode_line(ticket)
    assert len(line) > 5 * 2**20
    assert run(lambda: read_tickets(line)) == [ticket]


def test_a_line_over_the_limit_is_a_lost_worker() -> None:
    with pytest.raises(WorkerLost, match="over 1000 bytes"):
        run(lambda: read_tickets(b"x" * 2000 + b"\n", max_line_bytes=1000))


def test_lines_that_come_in_pieces_and_pieces_that_hold_lines_are_the_same_frames() -> None:
    tickets = [
        Ticket(generation="g", first_position=at, blocks=(BlockTicket(at, 7, b"%16d" % at),), last=at == 19)
        for at in range(20)
    ]
    lines = [encode_line(ticket) for ticket in tickets]
    assert run(lambda: read_tickets(*lines, pieces=7)) == tickets
    assert run(lambda: read_all_in_one(lines)) == tickets


async def read_all_in_one(lines: list[bytes]) -> list[object]:
    """All lines in one write; the reader has them all at once."""
    padding = [b""] * (len(lines) - 1)
    return await read_tickets(b"".join(lines), *padding)


def test_a_peer_that_drips_without_ending_a_line_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "SILENT_S", 0.3)
    line = encode_line(Ticket(generation="g", first_position=0, blocks=(), last=True))
    with pytest.raises(WorkerSilent, match=r"silent for 0\.3 s"):
        run(lambda: read_tickets(line, pieces=20, pause_s=0.1))


def test_a_slow_peer_whose_lines_come_in_time_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "SILENT_S", 0.3)
    lines = [encode_line(Ticket(generation="g", first_position=at, blocks=())) for at in range(8)]
    assert len(run(lambda: read_tickets(*lines, pause_s=0.1))) == 8


def test_an_end_within_a_line_is_a_lost_worker() -> None:
    with pytest.raises(WorkerLost, match="ended without a last frame"):
        run(lambda: read_tickets(b'{"type":"ticket"'))


def test_silence_of_this_process_is_not_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides share a loop here, which stands still for longer than a worker may be silent."""
    monkeypatch.setattr(hop, "SILENT_S", 0.3)
    tickets = [Ticket(generation="g", first_position=number, blocks=()) for number in range(2)]

    async def stalled() -> list[object]:
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.8)
        return await read_tickets(*map(encode_line, tickets), pause_s=0.2)

    assert run(stalled) == tickets


def test_a_worker_that_is_silent_for_too_long_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "SILENT_S", 0.3)
    line = encode_line(Ticket(generation="g", first_position=0, blocks=()))
    with pytest.raises(WorkerSilent, match="silent for"):
        run(lambda: read_tickets(line, line, pause_s=0.8))


def test_a_worker_that_takes_the_call_and_says_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "SILENT_S", 0.3)

    async def say_nothing(_: web.Request) -> web.Response:
        await asyncio.sleep(1.0)
        return web.Response()

    async def ask() -> None:
        async with serving(say_nothing) as url, call(url + "/prefill", request()):
            pytest.fail("it did not answer")

    with pytest.raises(WorkerSilent, match=r"did not answer within 0\.3 s"):
        run(ask)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'{"type":"error","code":"\xff"}',
        b'{"type":"error","x":' + b"[" * 100_000,
        b'{"type":"error","code":"overloaded","message":"","retry_after_s":1e308}',
        b'{"type":"done","cached_tokens":-5}',
        b'{"type":"done","pulls":1' + b"0" * 400 + b"}",
        b'{"type":"ticket","generation":"g","first_position":0,"blocks":[],"cached_tokens":-5}',
    ],
)
def test_a_line_that_is_no_frame_is_a_lost_worker(line: bytes) -> None:
    with pytest.raises(WorkerLost, match="a frame that is not of this protocol"):
        run(lambda: read_tickets(line + b"\n"))


def test_an_error_that_quotes_another_worker_stays_short() -> None:
    assert len(encode_line(error_frame(PrefillLost("x" * 2**20)))) < 2**12


@pytest.mark.parametrize(
    "body", [b"busy", b'{"message": "\xff"}', b'{"x": ' + b"[" * 100_000, b'{"message": "", "retry_after_s": 1e308}']
)
def test_a_refusal_that_no_worker_would_give_is_not_the_clients_fault(body: bytes) -> None:
    with pytest.raises(Overloaded, match="answered HTTP 400 without saying why"):
        run(lambda: refused_with(body))


def test_a_refusal_of_sixteen_mebibytes_is_not_read() -> None:
    with pytest.raises(Overloaded, match="answered HTTP 400 without saying why"):
        run(lambda: refused_with(msgspec.json.encode(hop.Refusal("x" * 2**24))))


async def refused_with(body: bytes) -> None:
    """A call that its server refuses with 400 and `body`."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=400, body=body)

    async with serving(refuse) as url, call(url + "/prefill", request()):
        pytest.fail("it was refused")


def test_an_answer_that_no_worker_would_give_is_not_the_clients_fault() -> None:
    with pytest.raises(Overloaded, match="answered HTTP 404 without saying why"):
        run(lambda: read_tickets(path="/other"))
