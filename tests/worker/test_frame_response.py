"""How an answer's frames leave a worker, and its end with them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec import Struct
from starlette.types import Message

from penstock.hop import new_session, open_hop
from penstock.post import Answer, Posts
from penstock.protocol import Accepted, Done, Error, Heartbeat, encode_line
from penstock.worker.http import FrameResponse, Write
from tests.worker.processes import WorkerProcess
from tests.worker.requests import read_to_end, request, run

ACCEPTED = Accepted("g")


async def bodies(produce: Callable[[Write], Awaitable[None]]) -> list[tuple[bytes, bool]]:
    """What FrameResponse has the server send: each piece of the body, and whether more is to come."""
    sent: list[tuple[bytes, bool]] = []
    ended = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append((message["body"], message["more_body"]))
            if not message["more_body"]:
                ended.set()

    async def receive() -> Message:
        await ended.wait()
        return {"type": "http.disconnect"}  # as servers say when the answer has ended

    await FrameResponse(produce)({"type": "http"}, receive, send)
    return sent


@pytest.mark.parametrize("last", [Done(), Error(code="overloaded", message="full")])
def test_the_last_frame_leaves_in_one_piece_with_the_end(last: Struct) -> None:
    beat = Heartbeat(1, 0.0, 0.0)

    async def produce(write: Write) -> None:
        await write([ACCEPTED])
        await write([beat, last])

    whole = encode_line(beat) + encode_line(last)
    assert run(lambda: bodies(produce)) == [(encode_line(ACCEPTED), True), (whole, False)]


def test_a_stream_without_a_last_frame_ends_when_nothing_more_is_written() -> None:
    async def produce(write: Write) -> None:
        await write([ACCEPTED])

    assert run(lambda: bodies(produce)) == [(encode_line(ACCEPTED), True), (b"", False)]


def test_what_is_left_to_do_after_the_last_frame_is_done() -> None:
    has_cleaned_up = False

    async def produce(write: Write) -> None:
        nonlocal has_cleaned_up
        await write([Done()])
        await asyncio.sleep(0.05)  # the server tells of the end meanwhile
        has_cleaned_up = True

    run(lambda: bodies(produce))
    assert has_cleaned_up


def test_calls_one_after_another_use_one_connection(decode: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, note = [], Posts.opened

    def count(posts: Posts, answer: Answer) -> None:
        opened.append(answer)
        note(posts, answer)

    monkeypatch.setattr(Posts, "opened", count)

    async def ask() -> None:
        async with new_session() as session:
            for _ in range(20):
                async with open_hop(session, f"{decode.url}/generate", request(max_tokens=2)) as hop:
                    assert isinstance((await read_to_end(hop))[-1], Done)

    run(ask)
    assert len(opened) == 1
