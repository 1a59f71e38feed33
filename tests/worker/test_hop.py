"""The calling side of a hop, where the other side is not a well-behaved worker."""

import pytest
from aiohttp import web

from penstock import hop
from penstock.errors import WorkerLost
from penstock.protocol import Accepted, BlockTicket, Ticket, encode_line
from tests.worker.requests import call, request, run


async def read_tickets(*lines: bytes) -> list[object]:
    """What a hop reads from a server that answers with an accepted frame and `lines`."""

    async def answer(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(http)
        for line in (encode_line(Accepted("g")), *lines):
            await response.write(line)
        return response

    app = web.Application()
    app.router.add_post("/prefill", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        frames: list[object] = []
        async with call(f"http://127.0.0.1:{runner.addresses[0][1]}/prefill", request()) as stream:
            async for frame in stream.frames():
                frames.append(frame)
                if len(frames) == len(lines):
                    break
        return frames
    finally:
        await runner.cleanup()


def test_a_ticket_of_five_mebibytes_is_read() -> None:
    blocks = tuple(BlockTicket(index, 7, b"%16d" % index) for index in range(150_000))
    ticket = Ticket(generation="g", first_position=0, blocks=blocks, last=True)
    line = encode_line(ticket)
    assert len(line) > 5 * 2**20
    assert run(lambda: read_tickets(line)) == [ticket]


def test_a_line_over_the_limit_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop, "MAX_LINE_BYTES", 1000)
    with pytest.raises(WorkerLost, match="over 1000 bytes"):
        run(lambda: read_tickets(b"x" * 2000 + b"\n"))
