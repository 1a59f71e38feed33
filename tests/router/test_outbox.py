"""A client's pace is not the stream's: events wait for the client, in order, up to a limit."""

import asyncio

import pytest
from starlette.types import Message

from penstock.router.outbox import MOST_BEHIND_BYTES, Outbox, SlowClient


def test_putting_does_not_wait_for_a_client_that_takes_nothing() -> None:
    async def run() -> bytes:
        taking, taken = asyncio.Event(), bytearray()

        async def send(message: Message) -> None:
            await taking.wait()
            taken.extend(message["body"])

        box = Outbox(send)
        for number in range(1000):
            async with asyncio.timeout(1):
                await box.put(b"%d " % number + b"x" * 1000)
        assert not taken
        taking.set()
        await box.flush()
        return bytes(taken)

    assert asyncio.run(run()) == b"".join(b"%d " % number + b"x" * 1000 for number in range(1000))


def test_a_client_that_keeps_up_is_never_behind_however_fast_the_events_come() -> None:
    async def run() -> int:
        num_bytes = 0

        async def send(message: Message) -> None:
            nonlocal num_bytes
            num_bytes += len(message["body"])

        box = Outbox(send)
        for _ in range(40):
            await box.put(b"x" * 2**20)
        await box.flush()
        return num_bytes

    assert asyncio.run(run()) == 40 * 2**20 > 2 * MOST_BEHIND_BYTES


def test_a_connection_that_is_free_gets_each_event_at_once_and_one_that_is_not_keeps_their_order() -> None:
    async def run() -> tuple[list[bytes], bytes]:
        sent: list[bytes] = []
        free = True

        async def send(message: Message) -> None:
            sent.append(message["body"])

        box = Outbox(send, lambda: free)
        await box.put(b"a")
        await box.put(b"b")
        at_once = list(sent)
        free = False
        await box.put(b"c")
        free = True
        await box.put(b"d")  # not before c, which waits for its writer
        await box.flush()
        return at_once, b"".join(sent)

    assert asyncio.run(run()) == ([b"a", b"b"], b"abcd")


def test_too_far_behind_is_an_end() -> None:
    async def fill(box: Outbox) -> None:
        for _ in range(40):
            await box.put(b"x" * 2**20)

    async def run() -> None:
        async def send(_: Message) -> None:
            await asyncio.Event().wait()

        box = Outbox(send)
        with pytest.raises(SlowClient, match="more than 16777216 bytes behind"):
            await fill(box)
        box.close()

    asyncio.run(run())
