"""Streams of events over real HTTP: what is heard is in the index, and a bad worker harms only itself."""

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import uvloop
from aiohttp import web

from penstock.hop import new_session
from penstock.protocol import SILENT_S, Events, Load, StepTiming, StoredBlock, encode_line
from penstock.router.cluster import Cluster, Member
from penstock.router.index import follower
from penstock.router.index.follower import MAX_FRAME_BYTES, Backoff, Follower
from penstock.router.index.keys import PromptKeys
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from tests.router.fake_worker import EventScript, FakeWorker, quiet_events, tell

PROMPT = PromptKeys("", (1, 2, 3, 4, 5))
FIRST = StoredBlock(b"a", b"root", (1, 2), "")
SECOND = StoredBlock(b"b", b"a", (3, 4))


@dataclass
class World:
    """Two ready workers that hold FIRST, and who follows them."""

    cluster: Cluster
    index: PrefixIndex
    metrics: Metrics
    worker: FakeWorker
    other: FakeWorker
    follower: Follower
    heard: list[tuple[str, Events]] = field(default_factory=list)

    def known(self, worker: FakeWorker | None = None) -> int:
        """How much of PROMPT is known to be cached there."""
        return self.index.match(PROMPT).get((worker or self.worker).url, 0)

    def errors(self, reason: str, worker: FakeWorker | None = None) -> float:
        labels = {"worker": (worker or self.worker).url, "reason": reason}
        return self.metrics.registry.get_sample_value("penstock_router_event_errors_total", labels) or 0.0


def in_world(test: Callable[[World], Awaitable[None]], *scripts: EventScript, others_go_on: bool = True) -> None:
    """Runs `test`; `scripts` are what the first worker's subscribers get, in turn."""

    async def run() -> None:
        worker, other = FakeWorker([[1]]), FakeWorker([[1]])
        for each in (worker, other):
            each.stored = [FIRST]
            await each.start()
        worker.event_scripts.extend(scripts)
        async with new_session() as session:
            index, metrics = PrefixIndex(1000), Metrics()
            heard: list[tuple[str, Events]] = []

            def hear(url: str, events: Events) -> None:
                heard.append((url, events))
                cluster.observed(url, events)

            following = Follower(session, index, metrics, hear)
            cluster = Cluster(session, 0.05, following.follow)
            world = World(cluster, index, metrics, worker, other, following, heard)
            for each in (worker, other):
                cluster.add(Member(each.url, "decode"))
            try:
                await until(lambda: world.known(other) == 2)
                await test(world)
                assert world.known(other) == 2, "the other worker goes on"
                assert other.subscriptions == 1 or not others_go_on
            finally:
                await cluster.close()
                await following.close()
                for each in (worker, other):
                    await each.stop()
        while index.sweep(1000):
            pass
        assert len(index) == 0

    uvloop.run(run())


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def after(*frames: Events) -> EventScript:
    """The snapshot, then these, then nothing more."""

    async def script(worker: FakeWorker, response: web.StreamResponse) -> None:
        await tell(response, worker.snapshot())
        for frame in frames:
            await tell(response, frame)
        await asyncio.Event().wait()

    return script


def writes(data: bytes) -> EventScript:
    """The snapshot, then `data`, then nothing more."""

    async def script(worker: FakeWorker, response: web.StreamResponse) -> None:
        await tell(response, worker.snapshot())
        with suppress(ConnectionError):
            await response.write(data)
            await asyncio.Event().wait()

    return script


async def endless(worker: FakeWorker, response: web.StreamResponse) -> None:
    """A line that never ends, in small pieces."""
    await tell(response, worker.snapshot())
    while True:
        await response.write(b"[" * 65_536)
        await asyncio.sleep(0)


async def cut(worker: FakeWorker, response: web.StreamResponse) -> None:
    await tell(response, worker.snapshot())


def test_what_a_worker_tells_is_known() -> None:
    stored = Events(generation="g1", sequence=1, stored=(SECOND,))
    removed = Events(generation="g1", sequence=2, removed=(b"b",), load=Load(num_blocks=9))

    async def test(world: World) -> None:
        await until(lambda: len(world.heard) >= 3)
        mine = [events for url, events in world.heard if url == world.worker.url]
        assert [events.load for events in mine] == [None, None, Load(num_blocks=9)]
        assert world.known() == 2

    in_world(test, after(stored, removed))

    async def test_stored(world: World) -> None:
        await until(lambda: world.known() == 4)

    in_world(test_stored, after(stored))


def test_a_worker_that_leaves_is_forgotten() -> None:
    async def test(world: World) -> None:
        await until(lambda: world.known() == 2)
        world.cluster.remove(world.worker.url)
        await until(lambda: world.known() == 0, timeout_s=SILENT_S / 2)

    in_world(test)


def test_a_cut_stream_is_opened_again() -> None:
    async def test(world: World) -> None:
        await until(lambda: world.worker.subscriptions == 3 and world.known() == 2)
        assert world.errors("lost") == 2

    in_world(test, cut, cut)


def test_a_cut_stream_takes_the_load_along() -> None:
    asked = asyncio.Event()

    async def busy_then_cut(worker: FakeWorker, response: web.StreamResponse) -> None:
        await tell(response, worker.snapshot())
        await tell(response, Events(generation="g1", sequence=1, load=Load(running=30)))
        await asked.wait()

    async def test(world: World) -> None:
        def streams() -> int:
            return sum(state.streams for state in world.cluster.snapshot().decode)

        await until(lambda: streams() == 30)
        asked.set()
        await until(lambda: streams() == 0)

    in_world(test, busy_then_cut)


def test_a_gap_is_healed_by_a_snapshot() -> None:
    async def test(world: World) -> None:
        world.worker.stored.append(SECOND)
        await until(lambda: world.known() == 4)
        assert (world.worker.subscriptions, world.errors("gap")) == (2, 1)

    in_world(test, after(Events(generation="g1", sequence=5)))


def gap_after(*frames: Events) -> EventScript:
    """These, and then one that does not follow."""

    async def script(_: FakeWorker, response: web.StreamResponse) -> None:
        for frame in frames:
            await tell(response, frame)
        await tell(response, Events(generation="g1", sequence=99))
        await asyncio.Event().wait()

    return script


@pytest.mark.parametrize("more", [False, True], ids=["a whole snapshot", "a part of one"])
def test_what_was_told_before_a_gap_is_swept_away_without_more_trouble(more: bool) -> None:
    """Else a worker could fill the memory with snapshots and gaps."""
    stored = tuple(StoredBlock(b"%d" % number, b"root", (number, number), "") for number in range(100))
    snapshot = Events(generation="g1", sequence=0, snapshot=True, block_size=2, stored=stored, more=more)

    async def test(world: World) -> None:
        await until(lambda: world.errors("gap") == 2 and world.known() == 2)
        await until(lambda: len(world.index) == 1)
        assert world.worker.subscriptions == 3

    in_world(test, gap_after(snapshot), gap_after(snapshot))


def test_a_silent_worker_is_forgotten() -> None:
    async def test(world: World) -> None:
        await until(lambda: world.known() == 2)
        world.worker.event_scripts.append(after())
        await until(lambda: world.known() == 0, timeout_s=SILENT_S + 1)
        await until(lambda: world.errors("lost") == 1)

    in_world(test, after())


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(writes(b"nonsense\n"), id="no JSON"),
        pytest.param(writes(b'{"generation":"\xff"}\n'), id="a name that is no UTF-8"),
        pytest.param(writes(b'{"generation":"g1","sequence":"one"}\n'), id="wrong type"),
        pytest.param(writes(b'{"generation":"g1","sequence":1,"timings":[[1,1,1,NaN]]}\n'), id="NaN"),
        pytest.param(writes(b'{"generation":"g1","sequence":1,"timings":[[1,1,1,1e999]]}\n'), id="infinity"),
        pytest.param(writes(b'{"generation":"g1","sequence":1,"stored":[["!","?",[]]]}\n'), id="bad hash"),
        pytest.param(writes(b"[" * 100_000 + b"\n"), id="deep nesting"),
        pytest.param(writes(b'"\xff\xfe"\n'), id="no UTF-8"),
        pytest.param(writes(b" " * (MAX_FRAME_BYTES + 1) + b"\n"), id="a frame too long"),
        pytest.param(endless, id="an endless line"),
        pytest.param(after(Events(generation="g1", sequence=1, timings=(StepTiming(1, 1, 1, -1.0),))), id="time"),
    ],
)
def test_a_worker_that_talks_nonsense_is_distrusted(script: EventScript, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        await until(lambda: world.errors("nonsense") == 1)
        assert world.known() == 0
        assert not [url for url, events in world.heard if events.timings]
        assert world.cluster.has_ready("decode")
        await until(lambda: world.known() == 2)
        assert world.worker.subscriptions == 2, "asked again after a while"

    with caplog.at_level(logging.WARNING, "penstock.router.index"):
        in_world(test, script)
    assert len(caplog.records) == 1


def test_a_worker_whose_cache_is_not_what_it_tells_is_found_out_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "DISTRUST_S", 0.1)
    monkeypatch.setattr(follower, "STABLE_S", 0.0)

    async def test(world: World) -> None:
        for times in (1, 2):
            await until(lambda: world.known() == 2)
            for _ in range(100):
                assert world.follower.judge(world.worker.url, 1000, 900), "about what it told of"
                assert world.follower.judge(world.worker.url, 50, 0), "a few blocks are soon evicted"
            asked = [world.follower.judge(world.worker.url, 1000, 100) for _ in range(16)]
            assert asked.index(False) == 8, "most of the last 16"
            await until(lambda: world.errors("nonsense") == times)  # noqa: B023
            assert world.known() == 0
            assert world.follower.judge(world.other.url, 1000, 900)

    with caplog.at_level(logging.WARNING, "penstock.router.index"):
        in_world(test)
    first_s, second_s = (record.args[1] for record in caplog.records)  # type: ignore[index]
    assert first_s <= 0.1 < 0.15 <= second_s, "longer each time, however long it was believed"


def test_a_worker_without_events_is_used_all_the_same() -> None:
    async def gone(_: web.Request) -> web.Response:
        return web.Response(status=404)

    class NoEvents(FakeWorker):
        _events = gone  # type: ignore[assignment]

    async def run() -> None:
        worker = NoEvents([[1]])
        await worker.start()
        async with new_session() as session:
            metrics = Metrics()
            follower = Follower(session, PrefixIndex(9), metrics)
            cluster = Cluster(session, 0.05, follower.follow)
            cluster.add(Member(worker.url, "decode"))
            labels = {"worker": worker.url, "reason": "nonsense"}
            counted = "penstock_router_event_errors_total"
            await until(lambda: metrics.registry.get_sample_value(counted, labels) == 1.0)
            assert cluster.has_ready("decode")
            await cluster.close()
            await follower.close()
            await worker.stop()

    uvloop.run(run())


@pytest.mark.parametrize(("num_frames", "num_timings"), [(30_000, 0), (200, 256)], ids=["frames", "timings"])
def test_a_flood_leaves_time_for_others(num_frames: int, num_timings: int) -> None:
    timings = (StepTiming(10, 1, 100, 0.01, 500),) * num_timings
    frames = (Events(generation="g1", sequence=1 + number, timings=timings) for number in range(num_frames + 99))
    flood = b"".join(map(encode_line, frames))

    async def test(world: World) -> None:
        longest, last = 0.0, time.thread_time()
        while len(world.heard) < num_frames:
            await asyncio.sleep(0)
            longest, last = max(longest, time.thread_time() - last), time.thread_time()
        assert longest < 0.2, "CPU seconds between two turns of another coroutine"

    gc.freeze()  # a collection of all that earlier tests left takes longer than what is measured
    try:
        in_world(test, writes(flood))
    finally:
        gc.unfreeze()


def test_a_fault_of_ours_does_not_end_the_following() -> None:
    async def test(world: World) -> None:
        def fault(_url: str, _events: Events) -> None:
            world.follower._heard = lambda *_: None
            raise RuntimeError("a bug")

        await until(lambda: world.known() == 2)
        world.follower._heard = fault
        await until(lambda: world.errors("fault") + world.errors("fault", world.other) == 1)
        await until(lambda: world.known() == 2 == world.known(world.other))

    in_world(test, others_go_on=False)


def test_pauses_double_until_there_was_no_trouble_for_a_while() -> None:
    backoff = Backoff(1.0, 5.0, stable_s=10.0)
    upper = [1.0, 2.0, 4.0, 5.0, 5.0]
    for most in upper:
        assert 0.75 * most <= backoff.pause_s(0.1) <= most
    assert backoff.pause_s(11.0) <= 1.0
    patient = Backoff(1.0, 5.0, stable_s=600.0)
    patient.pause_s(0.0)
    assert patient.pause_s(11.0) >= 1.5
    assert patient.pause_s(601.0) <= 1.0


def test_the_quiet_script_is_what_honest_workers_do() -> None:
    async def test(world: World) -> None:
        await until(lambda: sum(url == world.worker.url for url, _ in world.heard) >= 4)
        assert world.worker.subscriptions == 1

    in_world(test, quiet_events)
