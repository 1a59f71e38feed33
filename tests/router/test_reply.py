"""What a client is sent, whatever the connection does meanwhile."""

import asyncio

from starlette.types import Message

from penstock.router.http import Reply
from tests.router.flow.virtual_time import run


async def nothing() -> Message:
    return {"type": "http.request"}


def test_an_error_body_that_a_paused_connection_holds_up_is_not_mixed_with_comments() -> None:
    async def test() -> list[Message]:
        sent: list[Message] = []
        free = asyncio.Event()

        async def send(message: Message) -> None:
            await free.wait()
            sent.append(message)

        reply = Reply(send, nothing, "id")
        reply.never_silent(1.0)
        answering = asyncio.ensure_future(reply.json(b"{}", 503))
        await asyncio.sleep(10)
        free.set()
        await answering
        await asyncio.sleep(10)
        reply.close()
        return sent

    start, *bodies = run(test())
    assert (start["status"], bodies) == (503, [{"type": "http.response.body", "body": b"{}"}])
