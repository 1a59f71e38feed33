"""The watch of EndpointSlices against a server on this machine: expiry, outages, refusals."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from penstock.errors import ConfigError
from penstock.hop import new_session
from penstock.router.cluster import Cluster, Member
from penstock.router.config import RouterConfig
from penstock.router.discovery import Api, api_of_this_pod, discover
from tests.router.fake_api_server import SELECTOR, FakeApiServer, endpoint_slice


class Seen:
    """What the router was told."""

    def __init__(self) -> None:
        self.members: frozenset[Member] | None = None
        self.errors = 0
        self.token_file: Path | None = None

    def show(self, members: frozenset[Member]) -> None:
        self.members = members

    def count_error(self) -> None:
        self.errors += 1

    @property
    def hosts(self) -> set[str] | None:
        return None if self.members is None else {m.url.split("//")[1].split(":")[0] for m in self.members}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - of the server or of what was seen
                await asyncio.sleep(0.005)

    async def until_hosts(self, *hosts: str) -> None:
        await self.until(lambda: self.hosts == set(hosts))


def with_server(test: Callable[[FakeApiServer, Seen], Awaitable[None]], token_file: Path | None = None) -> None:
    async def run() -> None:
        server, seen = FakeApiServer(), Seen()
        await server.start()
        api = Api(server.url, "ns", token_file)
        watching = asyncio.create_task(discover(api, SELECTOR, seen.show, seen.count_error))
        try:
            await test(server, seen)
            assert not watching.done()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await server.stop()

    uvloop.run(run())


def test_members_are_those_of_the_list_and_of_every_event_after_it() -> None:
    async def test(server: FakeApiServer, seen: Seen) -> None:
        await seen.until_hosts()
        server.put(endpoint_slice("a", "10.0.0.1"))
        await seen.until_hosts("10.0.0.1")
        server.put(endpoint_slice("a", "10.0.0.1", "10.0.0.2"))
        await seen.until_hosts("10.0.0.1", "10.0.0.2")
        server.delete("a")
        await seen.until_hosts()
        assert (server.lists, len(server.watches), seen.errors) == (1, 1, 0)

    with_server(test)


def test_an_expired_watch_lists_again_and_learns_what_was_deleted_meanwhile() -> None:
    async def test(server: FakeApiServer, seen: Seen) -> None:
        server.put(endpoint_slice("a", "10.0.0.1"))
        await seen.until_hosts("10.0.0.1")
        server.slices = {}  # deleted, and nobody was told
        server.put(endpoint_slice("b", "10.0.0.2"))
        server.compact()
        await seen.until_hosts("10.0.0.2")
        assert (server.lists, seen.errors) == (2, 0)

    with_server(test)


def test_a_watch_goes_on_from_the_last_bookmark_when_the_server_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.router.discovery.WATCH_SILENCE_S", 30)

    async def test(server: FakeApiServer, seen: Seen) -> None:
        await seen.until(lambda: server.watches == ["100"])
        server.bookmark()
        server.put(endpoint_slice("a", "10.0.0.1"))
        await seen.until_hosts("10.0.0.1")
        server.end_watches()
        await seen.until(lambda: server.watches == ["100", "102"])
        server.put(endpoint_slice("a", "10.0.0.2"))
        await seen.until_hosts("10.0.0.2")
        assert server.lists == 1

    with_server(test)


def test_through_an_outage_the_known_workers_stay_and_within_5_s_of_its_end_they_are_true_again() -> None:
    async def test(server: FakeApiServer, seen: Seen) -> None:
        server.put(endpoint_slice("a", "10.0.0.1"))
        server.put(endpoint_slice("b", "10.0.0.2"))
        await seen.until_hosts("10.0.0.1", "10.0.0.2")
        port = int(server.url.rpartition(":")[2])
        await server.stop()
        await seen.until(lambda: seen.errors >= 3)
        assert seen.hosts == {"10.0.0.1", "10.0.0.2"}
        del server.slices["a"]
        server.put(endpoint_slice("c", "10.0.0.3"))
        await server.start(port)
        back = time.monotonic()
        await seen.until_hosts("10.0.0.2", "10.0.0.3")
        assert time.monotonic() - back < 5

    with_server(test)


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_refusal_is_counted_and_asked_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: FakeApiServer, seen: Seen) -> None:
        server.refusal = status
        await seen.until(lambda: seen.errors >= 2)
        assert f"HTTP {status}: endpointslices is forbidden" in caplog.text
        assert ("the router's Role must allow" in caplog.text) == (status == 403)
        server.refusal = None
        await seen.until_hosts()

    with_server(test)


def test_the_token_is_read_anew_for_every_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one")

    async def test(server: FakeApiServer, seen: Seen) -> None:
        await seen.until(lambda: len(server.watches) == 1)
        token.write_text("two\n")
        server.compact()
        await seen.until(lambda: len(server.watches) == 2)
        assert set(server.tokens[:2]) == {"Bearer one"}
        assert set(server.tokens[2:]) == {"Bearer two"}

    with_server(test, token)


def test_outside_of_a_pod_and_beside_fixed_lists_discovery_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="--discover works only in a pod"):
        api_of_this_pod()
    with pytest.raises(ConfigError, match="either listed, by --prefill and --decode, or watched"):
        RouterConfig(discover="a=b", decode="http://a")


def test_a_cluster_has_exactly_the_members_it_was_given() -> None:
    async def run() -> None:
        async with new_session() as session:
            cluster = Cluster(session, 60.0)
            one, two = Member("http://127.0.0.1:9", "decode", "r1"), Member("http://127.0.0.1:10", "prefill", "r1")
            cluster.set_members([one, two])
            kept = next(worker for worker in cluster.workers if worker.url == one.url)
            cluster.set_members([one, Member(two.url, "prefill", "r2")])
            assert next(worker for worker in cluster.workers if worker.url == one.url) is kept
            assert {worker.member.revision for worker in cluster.workers} == {"r1", "r2"}
            cluster.set_members([])
            assert cluster.workers == ()
            await cluster.close()

    uvloop.run(run())
