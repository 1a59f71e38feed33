"""Readiness and bookings of workers, against real HTTP."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from penstock.hop import Readiness, new_session
from penstock.router.cluster import Cluster, Member
from penstock.router.placement.books import About, Books
from penstock.router.placement.least_work import LeastWork
from penstock.router.policy import Placement, PlacementRequest
from tests.router.fake_worker import FakeWorker

POLL_S = 0.05


def with_cluster(test: Callable[[Cluster, FakeWorker], Awaitable[None]]) -> None:
    """Runs `test` with a cluster of one ready decode worker."""

    async def run() -> None:
        worker = FakeWorker([[1]])
        await worker.start()
        async with new_session() as session:
            cluster = Cluster(session, POLL_S)
            cluster.add(Member(worker.url, "decode"))
            try:
                await until(cluster, lambda: cluster.has_ready("decode"))
                await test(cluster, worker)
            finally:
                await cluster.close()
                await worker.stop()

    uvloop.run(run())


async def until(cluster: Cluster, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await cluster.change().wait()


def test_a_worker_is_chosen_from_its_first_ready_answer_on() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        assert [load.url for load in cluster.snapshot().decode] == [worker.url]
        assert cluster.snapshot().prefill == ()
        worker.ready = False
        await until(cluster, lambda: not cluster.has_ready("decode"))
        assert cluster.snapshot().decode == ()
        worker.ready = True
        await until(cluster, lambda: cluster.has_ready("decode"))
        assert cluster.arrival(worker.url) == 2

    with_cluster(test)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"{",
        b'{"ready": true, "max_context_tokens": -5}',
        b'{"ready": true, "step_tokens": 1%s}' % (400 * b"0"),
        b'{"model": "\xff"}',
        b'{"x": ' + b"[" * 100_000,
    ],
)
def test_a_worker_that_talks_nonsense_is_not_ready_until_it_talks_sense(nonsense: bytes) -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        worker.nonsense = nonsense
        await until(cluster, lambda: not cluster.has_ready("decode"))
        worker.nonsense = b""
        await until(cluster, lambda: cluster.has_ready("decode"))

    with_cluster(test)


def test_a_lost_worker_that_lives_is_back_at_once() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        cluster.mark_lost(worker.url)
        assert not cluster.has_ready("decode")
        began = time.monotonic()
        await until(cluster, lambda: cluster.has_ready("decode"))
        assert time.monotonic() - began < 0.5

    with_cluster(test)


def test_a_restarted_worker_is_back_within_half_a_second() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        port = int(worker.url.rpartition(":")[2])
        await worker.stop()
        await until(cluster, lambda: not cluster.has_ready("decode"))
        await worker.start(port)
        began = time.monotonic()
        await until(cluster, lambda: cluster.has_ready("decode"))
        assert time.monotonic() - began < 0.5

    with_cluster(test)


def test_an_answer_older_than_the_loss_does_not_count() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()
        ask = cluster._ask

        async def slow(url: str) -> Readiness | None:
            ready = await ask(url)
            asked.set()
            await answer.wait()
            return ready

        cluster._ask = slow  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            await asked.wait()
        cluster.mark_lost(worker.url)
        worker.ready = False
        answer.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not cluster.has_ready("decode")
        worker.ready = True
        await until(cluster, lambda: cluster.has_ready("decode"))

    with_cluster(test)


def test_a_removed_worker_is_not_chosen_and_not_asked() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        cluster.remove(worker.url)
        assert cluster.snapshot().decode == ()
        assert cluster.workers == ()
        cluster.mark_lost(worker.url)
        cluster.remove(worker.url)

    with_cluster(test)


def test_the_smallest_limit_of_the_ready_decode_workers_counts() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        def smallest() -> int | None:
            return cluster.smallest(lambda said: said.max_context_tokens)

        assert smallest() is None, "unknown"
        small, prefill = FakeWorker([[1]]), FakeWorker([[1]])
        for one, limit, role in ((small, 64, "decode"), (prefill, 16, "prefill")):
            one.max_context_tokens = limit
            await one.start()
            cluster.add(Member(one.url, role))  # type: ignore[arg-type]
        worker.max_context_tokens = 100
        cluster.mark_lost(worker.url)  # asks again at once
        await until(cluster, lambda: smallest() == 64 and len(cluster.snapshot().decode) == 2)
        small.ready = False
        await until(cluster, lambda: smallest() == 100)
        worker.ready = False
        await until(cluster, lambda: not cluster.has_ready("decode"))
        assert smallest() == 64, "none is ready: what is known of those that may come back"
        await small.stop()
        await prefill.stop()

    with_cluster(test)


def test_bookings_follow_the_work() -> None:
    async def test(cluster: Cluster, worker: FakeWorker) -> None:
        request = PlacementRequest(140, {worker.url: 40}, output_tokens=256)
        booked = cluster.reserve(Placement(worker.url), request)
        state = cluster.snapshot().decode[0]
        assert (state.prefill_tokens, state.output_tokens) == (100, 256)
        booked.produced(6)
        state = cluster.snapshot().decode[0]
        assert (state.prefill_tokens, state.output_tokens) == (0, 250)
        booked.produced(10_000)
        assert cluster.snapshot().decode[0].work == 0
        booked.release()
        unused = cluster.reserve(Placement(worker.url, "http://gone"), request)
        unused.release()
        assert cluster.snapshot().decode[0].work == 0
        assert cluster.books.in_flight(worker.url) == (0, 0)

    with_cluster(test)


def test_a_worker_of_another_model_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        right, wrong, silent = FakeWorker([[1]]), FakeWorker([[1]]), FakeWorker([[1]])
        right.model, wrong.model = "ours", "another"
        async with new_session() as session:
            cluster = Cluster(session, POLL_S, model="ours")
            for worker in (right, wrong, silent):
                await worker.start()
                cluster.add(Member(worker.url, "decode"))
            try:
                await until(cluster, lambda: len(cluster.snapshot().decode) == 2)
                assert {state.url for state in cluster.snapshot().decode} == {right.url, silent.url}
                assert [cluster.oddity(each) for each in cluster.workers] == ["", "model", ""]
                right.model = "another"  # another process at the same address
                await until(cluster, lambda: len(cluster.snapshot().decode) == 1)
            finally:
                await cluster.close()
                for worker in (right, wrong, silent):
                    await worker.stop()
        assert f"{wrong.url} is not ready: it serves another model" in caplog.text

    with caplog.at_level(logging.INFO):
        uvloop.run(run())


def test_workers_with_other_weights_than_the_rest_of_their_list_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        workers = {revision + weights: FakeWorker([[1]]) for revision in "ab" for weights in ("1", "1 too", "2", "")}
        async with new_session() as session:
            cluster = Cluster(session, POLL_S)
            for number, (name, worker) in enumerate(workers.items(), 1):
                worker.weights = name[1:2] if name[0] == "a" else "3"
                await worker.start()
                cluster.add(Member(worker.url, "decode", name[0]))
                await until(cluster, lambda: len(cluster.snapshot().decode) == number)  # noqa: B023
            odd, silent = workers["a2"], workers["a"]
            assert [record.args[0] for record in caplog.records if record.levelname == "WARNING"] == [odd.url]  # type: ignore[index]
            odd_ones = {each.url for each in cluster.workers if cluster.oddity(each) == "weights"}
            assert odd_ones == {workers[name].url for name in ("a1", "a1 too", "a2")}, "nobody knows who is right"
            same = {worker.url for name, worker in workers.items() if name in ("a1", "a1 too")} | {silent.url}
            assert {state.url for state in cluster.snapshot("1").decode} == same, "as far as is known"
            await cluster.close()
            for worker in workers.values():
                await worker.stop()

    with caplog.at_level(logging.INFO, "penstock.router"):
        uvloop.run(run())


def test_workers_of_two_layouts_are_no_pair() -> None:
    books = Books()
    for url, role, layout in (("http://p", "prefill", "a"), ("http://d", "decode", "b")):
        books.open(url, role, "r1")  # type: ignore[arg-type]
        books.describe(url, About(layout=layout))
    snapshot = books.snapshot(("http://p", "http://d"), 0.0)
    assert LeastWork().choose(PlacementRequest(1000), snapshot) == Placement("http://d")
    books.describe("http://p", About(layout="b"))
    snapshot = books.snapshot(("http://p", "http://d"), 0.0)
    assert LeastWork().choose(PlacementRequest(1000), snapshot) == Placement("http://d", "http://p")
