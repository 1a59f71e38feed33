"""Whether predictions are off is asked of every ready router of a deployment, and of nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from penstock.listen import free_port
from penstock.operator import names, predictions
from penstock.operator.predictions import Predictions
from penstock.operator.problems import Pod
from penstock.operator.store import Key, Store
from tests.router.local_server import LocalServer

KEY = ("default", "demo")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
"""Pods have addresses of their own, and one port."""


class Router(LocalServer):
    """Knows what the operator asks."""

    def __init__(self, *drift: str) -> None:
        self.drift: object = drift
        self.asked = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ready", self._ready)
        return app

    async def _ready(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"ready": True, "drift": self.drift, "workers": {}})


def pod(number: int, role: str = "router", *, ready: bool = True) -> Pod:
    labels = {names.DEPLOYMENT: "demo", names.ROLE: role}
    status = {"podIP": ADDRESSES[number], "conditions": [{"type": "Ready", "status": str(ready)}]}
    metadata = {"name": f"{role}-{number}", "namespace": "default", "labels": labels}
    return msgspec.convert({"metadata": metadata, "status": status}, Pod)


@pytest.fixture
def news() -> list[Key]:
    return []


@pytest.fixture
def store(news: list[Key], monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(predictions, "PAUSE_S", 0.001)
    monkeypatch.setattr(names, "ROUTER_PORT", free_port())
    store = Store(news.append)
    metadata = {"name": "demo", "namespace": "default", "uid": "1", "resourceVersion": "1"}
    store.put_deployment({"metadata": metadata, "spec": {}})
    return store


@asynccontextmanager
async def asked(store: Store, *routers: Router) -> AsyncIterator[None]:
    """An operator asks while the block lasts."""
    for router, address in zip(routers, ADDRESSES, strict=False):
        await router.start(names.ROUTER_PORT, address)
    task = asyncio.create_task(Predictions(store).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, *(router.stop() for router in routers), return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of a store without events
            await asyncio.sleep(0.001)


async def rounds(router: Router) -> None:
    """What it says by now has come to the store."""
    enough = router.asked + 2
    await until(lambda: router.asked >= enough)


def test_one_router_of_several_is_enough_and_it_is_over_when_none_is_off(store: Store, news: list[Key]) -> None:
    async def run() -> None:
        first, second = Router(), Router("ttft")
        for number in range(2):
            store.put_pod(pod(number))
        async with asked(store, first, second):
            await until(lambda: store.observe(KEY).drift == ("ttft",))
            first.drift = ["cached_tokens", "ttft"]
            await until(lambda: store.observe(KEY).drift == ("cached_tokens", "ttft"))
            first.drift = second.drift = []
            await until(lambda: store.observe(KEY).drift == ())
            looks = len(news)
            await rounds(first)
            assert len(news) == looks, "an answer as before is no news"

    asyncio.run(run())


def test_what_a_router_said_counts_as_long_as_it_is_ready(store: Store) -> None:
    async def run() -> None:
        router = Router("ttft")
        store.put_pod(pod(0))
        async with asked(store, router):
            await until(lambda: store.observe(KEY).drift == ("ttft",))
            router.drift = {"of": "another version"}
            await rounds(router)
            assert store.observe(KEY).drift == ("ttft",)
            store.put_pod(pod(0, ready=False))
            await until(lambda: store.observe(KEY).drift is None)

    asyncio.run(run())


def test_neither_workers_nor_routers_that_are_not_ready_are_asked(store: Store) -> None:
    async def run() -> None:
        ready, other = Router(), Router("ttft")
        store.put_pod(pod(0))
        store.put_pod(pod(1, ready=False))
        store.put_pod(pod(1, "decode"))
        async with asked(store, ready, other):
            await rounds(ready)
            assert (other.asked, store.observe(KEY).drift) == (0, ())

    asyncio.run(run())


def test_a_router_that_cannot_be_reached_says_nothing(store: Store) -> None:
    async def run() -> None:
        reached = Router()
        for number in range(2):
            store.put_pod(pod(number))
        async with asked(store, reached):
            await until(lambda: store.observe(KEY).drift == ())
            store.drop_pod("default", "router-0")
            await until(lambda: store.observe(KEY).drift is None)

    asyncio.run(run())
