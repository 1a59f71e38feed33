"""The queue: no key twice at the same time, and a failing one delays only itself."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from penstock.operator.metrics import Metrics
from penstock.operator.work_queue import Queue

A, B = ("ns", "a"), ("ns", "b")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(5):
            await scenario

    asyncio.run(limited())


def test_news_that_arrive_together_are_one_look() -> None:
    async def scenario() -> None:
        queue = Queue(Metrics())
        for _ in range(100):
            queue.add(A)
        queue.add(B)
        assert {await queue.get(), await queue.get()} == {A, B}
        more = asyncio.ensure_future(queue.get())
        done, _ = await asyncio.wait([more], timeout=0.1)
        assert not done
        more.cancel()

    run(scenario())


def test_news_during_a_look_make_another_one_afterwards() -> None:
    async def scenario() -> None:
        queue = Queue(Metrics())
        queue.add(A, 0)
        assert await queue.get() == A
        queue.add(A, 0)
        waiting = asyncio.ensure_future(queue.get())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done, "looked at twice at the same time"
        queue.done(A, failed=False)
        assert await waiting == A

    run(scenario())


def test_a_failing_key_waits_longer_each_time_and_no_other_with_it() -> None:
    async def scenario() -> None:
        queue = Queue(Metrics())
        loop = asyncio.get_running_loop()
        waits = []
        queue.add(A, 0)
        assert await queue.get() == A
        for _ in range(3):
            failed_at = loop.time()
            queue.done(A, failed=True)
            queue.add(B, 0)
            assert await queue.get() == B
            assert loop.time() - failed_at < 0.2
            queue.done(B, failed=False)
            assert await queue.get() == A
            waits.append(loop.time() - failed_at)
        assert waits[0] < waits[1] < waits[2]

    run(scenario())


def test_the_more_want_a_look_the_longer_news_are_collected() -> None:
    async def wait_s(num_others: int) -> float:
        queue, loop = Queue(Metrics()), asyncio.get_running_loop()
        for index in range(num_others):
            queue.add(("other", str(index)), 60)
        begin = loop.time()
        queue.add(A)
        assert await queue.get() == A
        return loop.time() - begin

    async def scenario() -> None:
        assert await wait_s(0) < 0.2
        assert 0.5 < await wait_s(100) < 0.9
        assert 0.95 < await wait_s(5000) < 1.5

    run(scenario())
