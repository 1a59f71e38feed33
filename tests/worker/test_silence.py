"""A silent peer is given up in time, and one that answered while this process stood still is not."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from penstock.silence import HeardWithin

RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


async def hear(within_s: float, *, answer_after_s: float, stall_s: float = 0.0) -> bytes:
    """What a peer says, while this process stands still from 0.05 s on."""
    here, there = socket.socketpair()
    with there:
        reader, writer = await asyncio.open_connection(sock=here)
        asyncio.get_running_loop().call_later(0.05, time.sleep, stall_s)
        answer = threading.Timer(answer_after_s, there.send, (b"here",))
        answer.start()
        try:
            async with HeardWithin(within_s):
                return await reader.read(4)
        finally:
            writer.close()
            answer.cancel()
            answer.join()


@RUNNERS
def test_a_peer_that_says_nothing_is_given_up_in_time(run: Run) -> None:
    async def test() -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await hear(0.2, answer_after_s=60)
        assert 0.2 <= time.monotonic() - began < 10

    run(test())


@RUNNERS
def test_what_came_while_this_process_stood_still_is_heard(run: Run) -> None:
    async def test() -> None:
        assert await hear(0.1, answer_after_s=0.3, stall_s=0.6) == b"here"

    run(test())


@RUNNERS
def test_who_stood_still_waits_a_little_longer_and_no_more(run: Run) -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            await hear(0.1, answer_after_s=60, stall_s=0.6)

    run(test())


@RUNNERS
def test_whoever_is_cancelled_is_cancelled(run: Run) -> None:
    async def wait() -> None:
        async with HeardWithin(60):
            await asyncio.sleep(60)

    async def test() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test())
