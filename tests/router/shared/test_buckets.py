"""Quotas that several routers share, through a real Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import pytest

from penstock.router.flow.quota import LocalBuckets
from penstock.router.metrics import Metrics
from penstock.router.shared import buckets
from penstock.router.shared.buckets import ANSWER_S, SharedBuckets
from penstock.router.shared.link import Link
from tests.redis_server import RedisServer
from tests.router.shared.peers import run_peers

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("patient")]

SLOW = 6
"""A quota per minute that refills by a tenth in a second, so that the clock does not matter here."""


class Peer:
    """A router, as far as quotas go."""

    def __init__(self, url: str) -> None:
        self.link = Link(url, Metrics())
        self.buckets = SharedBuckets(self.link, "test", LocalBuckets())

    async def meet(self) -> None:
        """As the exchange does all the time: asks until Redis answers."""
        async with asyncio.timeout(5):
            while await self.link.run("return 1", "any") is None:
                pass

    async def taken(self, times: int, per_minute: int = SLOW, amount: float = 1) -> int:
        """How many of so many takes succeed."""
        levels = [await self.buckets.take("team/requests", per_minute, amount, 0) for _ in range(times)]
        return sum(level.taken for level in levels)


NewPeer: TypeAlias = Callable[..., Peer]


def run(url: str, test: Callable[[NewPeer], Awaitable[None]]) -> None:
    run_peers(partial(Peer, url), test)


async def pair(new_peer: NewPeer) -> tuple[Peer, Peer]:
    one, other = new_peer(), new_peer()
    for peer in (one, other):
        await peer.meet()
    return one, other


def test_a_quota_holds_over_all_routers(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        peers = await pair(new_peer)
        assert sum(await asyncio.gather(*(peer.taken(20) for peer in peers))) == SLOW

    run(redis.url, test)


def test_a_burst_is_counted_one_by_one(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        peers = await pair(new_peer)
        takes = [peer.buckets.take("burst/tokens", 60, 5, 0) for peer in peers for _ in range(40)]
        levels = await asyncio.gather(*takes)
        assert sum(level.taken for level in levels) == 12

    run(redis.url, test)


def test_what_one_gives_back_another_may_take(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = await pair(new_peer)
        assert await one.taken(SLOW) == SLOW
        assert await other.taken(1) == 0
        await one.buckets.take("team/requests", SLOW, -2)
        assert await other.taken(5) == 2

    run(redis.url, test)


def test_a_bucket_refills_steadily_and_holds_no_more_than_a_minute(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = await pair(new_peer)
        per_minute = 60_000  # a thousand a second
        began = time.monotonic()
        assert (await one.buckets.take("fast", per_minute, 60_000)).amount == 0
        await asyncio.sleep(0.2)
        level = await other.buckets.take("fast", per_minute, 0)
        assert 190 <= level.amount <= 1000 * (time.monotonic() - began) + 10
        assert (await other.buckets.take("fast", per_minute, -(10**9))).amount == per_minute

    run(redis.url, test)


def test_a_level_may_fall_below_zero_unless_something_must_be_left(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = await pair(new_peer)
        assert (await one.buckets.take("debt", SLOW, 10)).amount == pytest.approx(-4, abs=0.1)
        level = await other.buckets.take("debt", SLOW, 1, least=0)
        assert not level.taken
        assert level.seconds_to(1) == pytest.approx(50, abs=1)

    run(redis.url, test)


def test_without_redis_each_router_goes_on_from_what_it_knew(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = await pair(new_peer)
        assert await one.taken(4) == 4
        assert await other.taken(1) == 1
        redis.kill()
        assert await one.taken(10) == SLOW - 4  # it has not heard of the other's since
        assert await other.taken(10) == SLOW - 5

    run(redis.url, test)


def test_a_redis_that_comes_back_empty_grants_no_fresh_minute(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = await pair(new_peer)
        assert await one.taken(10) == SLOW
        redis.kill()
        redis.start()
        for peer in (one, other):
            await peer.meet()
        assert await one.taken(10) == 0
        assert await other.taken(10) == 0

    run(redis.url, test)


def test_a_frozen_redis_costs_one_request_some_milliseconds_and_the_others_nothing(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "ANSWER_S", ANSWER_S)

    async def test(new_peer: NewPeer) -> None:
        one = new_peer()
        await one.meet()
        assert await one.taken(1) == 1
        redis.freeze()
        began = time.monotonic()
        for _ in range(100):
            await one.taken(1)
        assert time.monotonic() - began < 20 * ANSWER_S, "one wait, and not a hundred"
        redis.thaw()
        await one.meet()
        assert one.link.is_up
        assert await one.taken(10) <= SLOW - 1

    run(redis.url, test)
