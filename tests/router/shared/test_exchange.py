"""What routers tell each other of their work, through a real Redis."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.router.metrics import Metrics
from penstock.router.placement.books import Books
from penstock.router.placement.least_work import LeastWork
from penstock.router.policy import Placement, PlacementRequest
from penstock.router.shared.exchange import PERIOD_S, SILENT_S, Exchange
from penstock.router.shared.link import Link
from tests.redis_server import RedisServer
from tests.router.shared.peers import run_peers

pytestmark = pytest.mark.redis

WRITE = "return redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. '000 ' .. ARGV[2])"
URLS = tuple(f"http://decode-{number}" for number in range(4))


class Peer:
    """A router, as far as the others hear of it."""

    def __init__(self, url: str, prefix: str = "test") -> None:
        self.books = Books()
        for worker in URLS:
            self.books.open(worker, "decode")
        self.metrics = Metrics()
        self.link = Link(url, self.metrics)
        self.exchange = Exchange(self.link, prefix)

    async def look(self) -> bool:
        return await self.exchange.look(self.books)

    def book(self, worker: str, prompt_tokens: int = 100) -> Any:
        return self.books.book(Placement(worker), PlacementRequest(prompt_tokens, output_tokens=10), 0.0)

    def place(self, request: PlacementRequest) -> str:
        """As the policy says."""
        placement = LeastWork().choose(request, self.books.snapshot(URLS, 0.0))
        assert placement is not None
        self.books.book(placement, request, 0.0)
        return placement.decode

    def work(self, worker: str = URLS[0]) -> tuple[int, int, int, int]:
        """Streams, prompts, prompt tokens and output tokens that a policy sees on `worker`."""
        state = next(state for state in self.books.snapshot(URLS, 0.0).decode if state.url == worker)
        return state.streams, state.prompts, state.prefill_tokens, state.output_tokens


NewPeer: TypeAlias = Callable[..., Peer]


def run(url: str, test: Callable[[NewPeer], Awaitable[None]]) -> None:
    run_peers(partial(Peer, url), test)


def test_each_router_sees_what_all_have_booked(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        peers = [new_peer() for _ in range(3)]
        first = peers[0].book(URLS[0])
        peers[1].book(URLS[0], 50)
        for peer in (*peers, *peers):
            assert await peer.look()
        assert [peer.work() for peer in peers] == [(2, 2, 150, 20)] * 3
        first.produced(4, 0.0)
        for peer in peers:
            await peer.look()
        assert [peer.work() for peer in peers] == [(2, 1, 50, 16)] * 3

    run(redis.url, test)


def test_deployments_with_other_prefixes_do_not_hear_each_other(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = new_peer("one"), new_peer("other")
        one.book(URLS[0])
        for peer in (one, other):
            await peer.look()
        assert other.work() == (0, 0, 0, 0)

    run(redis.url, test)


def test_two_routers_spread_load_as_one_would(redis: RedisServer) -> None:
    """One has got the long prompts, the other the short ones; each looks after every four placements."""

    def spread(placed: list[tuple[str, int]]) -> float:
        """Most work of a worker over the mean."""
        sums = [sum(tokens for url, tokens in placed if url == worker) for worker in URLS]
        return max(sums) / (sum(sums) / len(sums))

    async def place(routers: tuple[Peer, Peer]) -> list[tuple[str, int]]:
        placed = []
        for number, tokens in enumerate([1000] * 6 + [100] * 40):
            router = routers[tokens == 100]
            placed.append((router.place(PlacementRequest(tokens, output_tokens=10)), tokens))
            if number % 4 == 1:
                for peer in set(routers):
                    await peer.look()
        return placed

    async def test(new_peer: NewPeer) -> None:
        alone, deaf = new_peer("alone"), (new_peer("deaf"), new_peer("mute"))
        one, two, apart = await place((alone, alone)), await place((new_peer(), new_peer())), await place(deaf)
        assert spread(one) < 1.05
        assert spread(two) < 1.05 * spread(one)
        assert spread(apart) > 1.15  # so it is the exchange that does it

    run(redis.url, test)


def test_a_router_that_is_gone_is_forgotten(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = new_peer(), new_peer()
        one.book(URLS[0])
        await one.look()
        await other.look()
        assert other.work()[0] == 1
        await one.exchange.leave()
        await other.look()
        assert other.work()[0] == 0
        await one.look()  # and from now on says nothing more
        began = asyncio.get_running_loop().time()
        await other.look()
        assert other.work()[0] == 1
        while other.work()[0]:
            assert asyncio.get_running_loop().time() - began < 2 * SILENT_S
            await asyncio.sleep(PERIOD_S)
            await other.look()
        assert asyncio.get_running_loop().time() - began > 0.9 * SILENT_S

    run(redis.url, test)


def test_a_lost_redis_is_survived_and_an_empty_one_filled_again(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # as `penstock up` has it

    async def wait_for(what: Any, within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not what():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    async def test(new_peer: NewPeer) -> None:
        one, other = new_peer(), new_peer()
        one.book(URLS[0])
        tasks = [asyncio.create_task(peer.exchange.run(peer.books)) for peer in (one, other)]
        await wait_for(lambda: other.work()[0] == 1, 1)
        redis.kill()
        await wait_for(lambda: not other.link.is_up, 1)
        await wait_for(lambda: other.work()[0] == 0, 3 * SILENT_S)  # by then its worker reports that stream
        assert other.metrics.registry.get_sample_value("penstock_router_redis_ready") == 0
        assert (other.metrics.registry.get_sample_value("penstock_router_redis_errors_total") or 0) >= 2
        redis.start()
        await wait_for(lambda: other.work()[0] == 1, 5)
        assert other.metrics.registry.get_sample_value("penstock_router_redis_ready") == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(redis.url, test)
    said = [record.message.split(":")[0] for record in caplog.records if "Redis" in record.message]
    assert said == ["Redis is lost"] * 2 + ["Redis answers again"] * 2, "who sees the one sees the other"


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost:6379", "redis://localhost:port"])
def test_what_is_no_url_of_a_redis_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="redis must be a URL such as"):
        Link(url, Metrics())


def test_a_server_that_is_no_redis_is_a_redis_that_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def whole() -> None:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            peer = Peer(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            for _ in range(3):
                assert not await peer.look()
            await peer.link.close()

    asyncio.run(whole())
    assert len([record for record in caplog.records if "Redis is lost" in record.message]) == 1


def test_an_answer_too_short_costs_that_one_call(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_answers(*_: Any, **__: Any) -> list[Any]:
        return []

    async def test(new_peer: NewPeer) -> None:
        peer = new_peer()
        with monkeypatch.context() as broken:
            broken.setattr("redis.asyncio.client.Pipeline.execute", no_answers)
            assert await peer.link.run("return 1", "any", within_s=0.05) is None
        assert await peer.link.run("return 1", "any") == 1

    run(redis.url, test)


def test_what_cannot_be_read_is_left_out_and_told_once(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = new_peer(), new_peer()
        one.book(URLS[0])
        await one.look()
        await one.link.run("return redis.call('HSET', KEYS[1], 'x', 'no time')", "test:routers")
        absurd = [msgspec.msgpack.encode({URLS[0]: [0, 0, prompts, 0, prompts]}) for prompts in (10**15, -1)]
        for name, totals in enumerate((b"\xff\x00\n", b'{"some": "JSON"}', *absurd)):
            await one.link.run(WRITE, "test:routers", name, totals)
        for _ in range(3):
            assert await other.look()
            assert other.work()[0] == 1

    run(redis.url, test)
    assert len([record for record in caplog.records if "another release" in record.message]) == 1


def test_releases_that_know_more_or_fewer_fields_understand_each_other(redis: RedisServer) -> None:
    async def test(new_peer: NewPeer) -> None:
        one, other = new_peer(), new_peer()
        older, newer = [7, 0, 1], [5, 0, 1, 0, 1, 5, 9, 5, 12345, "new"]
        for name, fields in (("older", older), ("newer", newer)):
            packed = msgspec.msgpack.encode({URLS[0]: fields})
            await one.link.run(WRITE, "test:routers", name, packed)
        await other.look()
        assert other.work() == (1, 2, 12, 9)

    run(redis.url, test)
