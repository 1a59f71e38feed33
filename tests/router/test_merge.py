"""Merged streams: all items, the first error, no task left behind."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from penstock.router.merge import merge


async def count(first: int, num: int, closed: list[int]) -> AsyncGenerator[int, None]:
    try:
        for value in range(first, first + num):
            yield value
            await asyncio.sleep(0)
    finally:
        closed.append(first)


def test_all_items_come_in_their_streams_order() -> None:
    async def test() -> None:
        closed: list[int] = []
        items = [item async for item in merge([count(0, 5, closed), count(10, 50, closed), count(100, 0, closed)])]
        assert sorted(items) == [*range(5), *range(10, 60)]
        assert [item for item in items if item >= 10] == list(range(10, 60))
        assert sorted(closed) == [0, 10, 100]

    asyncio.run(test())


def test_an_error_ends_all() -> None:
    async def fail() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    async def test() -> None:
        closed: list[int] = []
        with pytest.raises(ValueError, match="broken"):
            async for _ in merge([fail(), count(0, 10**9, closed)]):
                pass
        assert closed == [0]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(test())


def test_closing_closes_the_streams() -> None:
    async def test() -> None:
        closed: list[int] = []
        async with aclosing(merge([count(0, 10**9, closed), count(1, 10**9, closed)])) as items:
            await anext(items)
        assert sorted(closed) == [0, 1]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(test())
