"""Two routers and one Redis as clients see them: fake workers behind, the stock SDK in front."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.redis_server import RedisServer
from tests.router.conftest import TEXTS, StartRouter
from tests.router.fake_worker import FakeWorker
from tests.router.serving import (
    MESSAGES,
    LoopThread,
    RunningRouter,
    assert_nothing_is_left,
    hold,
    stream_text,
    wait_until,
)

pytestmark = pytest.mark.redis

Connect = Callable[[RunningRouter], openai.OpenAI]


def heard(router: RunningRouter) -> int:
    """Streams that it sees on all workers."""
    return sum(state.streams for state in router.services.cluster.snapshot().decode)


def metric(router: RunningRouter, name: str) -> float:
    value = router.services.metrics.registry.get_sample_value(f"penstock_router_redis_{name}")
    assert value is not None
    return value


def wait_redis(router: RunningRouter) -> None:
    """Until it has an answer."""
    wait_until(lambda: metric(router, "ready") == 1, "Redis' answer", 10)


def test_one_router_keeps_clear_of_workers_that_the_other_keeps_busy(
    redis: RedisServer,
    start_router: StartRouter,
    start_worker: Callable[[], FakeWorker],
    worker_loop: LoopThread,
    connect: Connect,
) -> None:
    workers = tuple(start_worker() for _ in range(4))
    for worker in workers:
        worker.gate = hold(worker_loop)
    routers = [start_router(workers, redis=redis.url, policy="least-work") for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        streams = []
        for count in range(4):
            streams.append(pool.submit(stream_text, connect(routers[count // 2])))
            wait_until(lambda: sum(worker.running for worker in workers) == len(streams), "the stream")
            wait_until(lambda: all(heard(router) == len(streams) for router in routers), "the news")
        assert [worker.running for worker in workers] == [1, 1, 1, 1]
        for worker in workers:
            assert worker.gate is not None
            worker_loop.call(worker.gate.set)
        assert [stream.result(10) for stream in streams] == [[TEXTS[0]]] * 4
    wait_until(lambda: not any(heard(router) for router in routers), "the end in the books of both")


def test_redis_lost_and_back_empty_amid_streams_fails_no_request(
    redis: RedisServer, start_router: StartRouter, start_worker: Callable[[], FakeWorker], connect: Connect, keys: Path
) -> None:
    """200 streams over two routers, with quotas, while Redis is frozen, killed, and started anew and empty."""
    workers = tuple(start_worker() for _ in range(2))
    routers = [start_router(workers, redis=redis.url, keys=str(keys)) for _ in range(2)]
    clients = [connect(router).with_options(api_key="sk-plenty") for router in routers]

    def ask(number: int) -> float:
        began = time.monotonic()
        assert stream_text(clients[number % 2]) == [TEXTS[0]]
        return time.monotonic() - began

    with ThreadPoolExecutor(4) as pool:
        calls = []

        def send(count: int) -> None:
            calls.extend(pool.submit(ask, number) for number in range(count))
            wait_until(lambda: sum(call.done() for call in calls) >= len(calls) - 10, "the answers", 30)

        send(50)
        redis.freeze()
        send(50)
        redis.kill()
        send(50)
        redis.start()
        send(50)
        took_s = [call.result(10) for call in calls]
    assert len(took_s) == 200
    assert max(took_s) < 2
    for router in routers:
        assert metric(router, "errors_total") >= 1
        wait_redis(router)
        assert_nothing_is_left(router)


@pytest.mark.usefixtures("patient")
def test_a_quota_holds_over_both_routers(
    redis: RedisServer, start_router: StartRouter, worker: FakeWorker, connect: Connect, keys: Path
) -> None:
    routers = [start_router((worker,), redis=redis.url, keys=str(keys)) for _ in range(2)]
    for router in routers:
        wait_redis(router)
    clients = [connect(router).with_options(api_key="sk-five") for router in routers]
    left = []
    for number in range(5):
        reply = clients[number % 2].chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]
        left.append(reply.headers["x-ratelimit-remaining-requests"])
    assert left == ["4", "3", "2", "1", "0"]
    for client in clients:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]


def test_a_router_starts_and_serves_while_redis_is_away(
    redis: RedisServer, start_router: StartRouter, worker: FakeWorker, connect: Connect
) -> None:
    redis.kill()
    router = start_router((worker,), redis=redis.url)
    assert stream_text(connect(router)) == [TEXTS[0]]
    assert metric(router, "ready") == 0
    redis.start()
    wait_redis(router)


def test_a_router_that_stops_leaves_no_work_on_the_others_books(
    redis: RedisServer, start_router: StartRouter, worker: FakeWorker, worker_loop: LoopThread, connect: Connect
) -> None:
    worker.gate = hold(worker_loop)
    routers = [start_router((worker,), redis=redis.url, shutdown_grace_s=0.1) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(stream_text, connect(routers[0]))
        wait_until(lambda: heard(routers[1]) == 1, "the news")
        routers[0].stop()
        wait_until(lambda: heard(routers[1]) == 0, "the end")
        with pytest.raises(openai.APIError):
            stream.result(10)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key file: one may ask five times a minute, the other as often as it likes, but it is counted."""
    path = tmp_path / "keys.toml"
    text = ""
    for name, quota in (("five", 5), ("plenty", 10**6)):
        digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
        text += f'[{name}]\nkey_sha256 = ["{digest}"]\nrequests_per_minute = {quota}\n'
    path.write_text(text)
    return path
