"""Starts real routers and fake workers for a test, each on an event loop in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import openai

from penstock.router.config import RouterConfig
from penstock.router.main import RouterServer, make_server

T = TypeVar("T")

MESSAGES = [{"role": "user", "content": "Hello"}]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    """Returns as soon as `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.002)


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def call(self, function: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class RunningRouter:
    """A router listening on a free port."""

    def __init__(self, server: RouterServer) -> None:
        self.server = server
        self.services = server._services
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: server.started, "the router's start")
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://{server.config.host}:{self.port}"

    def wait_ready(self) -> None:
        """Until every configured worker was found ready."""
        wait_until(lambda: all(worker.ready for worker in self.services.cluster.workers), "readiness of all workers")

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the router did not stop"


@contextmanager
def running_router(config: RouterConfig) -> Iterator[RunningRouter]:
    router = RunningRouter(make_server(config))
    try:
        yield router
    finally:
        router.stop()


def hold(worker_loop: LoopThread) -> asyncio.Event:
    """A gate that never opens."""

    async def make() -> asyncio.Event:
        return asyncio.Event()

    return worker_loop.run(make())


def stream_text(client: openai.OpenAI, **options: object) -> list[str]:
    """The texts of all choices of a streamed answer."""
    texts: dict[int, str] = {}
    stream = client.chat.completions.create(**{"model": "tiny", "messages": MESSAGES, "stream": True, **options})  # type: ignore[call-overload]
    for chunk in stream:
        texts[chunk.choices[0].index] = texts.get(chunk.choices[0].index, "") + (chunk.choices[0].delta.content or "")
    return [texts[index] for index in sorted(texts)]


def assert_nothing_is_left(router: RunningRouter) -> None:
    """Soon there is no request, and no work booked on any worker."""
    wait_until(lambda: len(router.services.lifelines) == 0, "the end of all requests")
    wait_until(
        lambda: all(
            router.services.cluster.books.in_flight(one.url) == (0, 0) for one in router.services.cluster.workers
        ),
        "release of all bookings",
    )
