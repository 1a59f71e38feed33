"""What the placer books."""

import asyncio

import aiohttp
import pytest

from penstock.errors import DeadlineExceeded, Stopping, WorkerLost
from penstock.protocol import GenerateRequest, Sample, SamplingParams
from penstock.router.cluster import Cluster, Member
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.room import Room
from penstock.router.flow.tenants import ANYONE
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placement.journal import Journal
from penstock.router.placement.model import CostModel
from penstock.router.placer import Placer, Trial
from penstock.router.policy import LeastWork


def new_placer(session: aiohttp.ClientSession, cluster: Cluster, index: PrefixIndex) -> Placer:
    return Placer(
        session,
        cluster,
        LeastWork(),
        index,
        Metrics(),
        Journal(CostModel()),
        max_attempts=9,
        wait_s=1.0,
        room=Room(0.25),
        most_waiting=9,
        longest_wait_s=9.0,
    )


def just_arrived() -> Arrival:
    return Arrival("r", ANYONE, Patience(1, 1, 1), asyncio.get_running_loop().time())


def test_what_resumes_is_placed_by_all_tokens_that_it_has_and_reads_only_from_its_own_revision() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster, index = Cluster(session, 1.0), PrefixIndex(9)
            for name, revision in (("d0", "1"), ("d1", "1"), ("d2", "2")):
                cluster.add(Member(f"http://{name}", "decode", revision))
            placer = new_placer(session, cluster, index)
            request = GenerateRequest(
                request_id="r", prompt=(1,) * 20, sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial, arrival = Trial(), just_arrived()
            sources = []
            for ready in (0, 1, 2, 1):
                for number, worker in enumerate(cluster.workers):
                    worker.ready = number == ready
                placed = await placer.place(request, 1, trial, arrival.began + 1, arrival, output=(2,) * 15)
                assert cluster.snapshot().decode[0].prefill_tokens == 35
                placer.ended(placed)
                sources.append(placed.source)
                error = Stopping("it leaves") if ready != 2 else WorkerLost("it is gone")
                placer.failed(placed, trial, error, num_output=15)
                trial.excluded.clear()
            assert sources == [None, "http://d0", None, None], "not from another revision, not from the dead"
            await cluster.close()

    asyncio.run(test())


def test_only_the_answers_that_are_placed_are_booked() -> None:
    """An answer that goes on alone is one of the request's three."""

    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster.add(Member("http://d", "decode"))
            cluster.workers[0].ready = True
            placer = new_placer(session, cluster, PrefixIndex(9))
            request = GenerateRequest(
                request_id="r",
                prompt=(1, 2),
                sampling=SamplingParams(max_tokens=20),
                samples=tuple(Sample(index, 1) for index in range(3)),
            )
            for num_answers in (3, 1):
                arrival = just_arrived()
                placed = await placer.place(request, num_answers, Trial(), arrival.began + 1, arrival)
                assert cluster.snapshot().decode[0].output_tokens == 20 * num_answers
                placed.reservation.release()
            await cluster.close()

    asyncio.run(test())


def test_a_deadline_that_passes_is_no_workers_failure() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster.add(Member("http://d", "decode"))
            cluster.workers[0].ready = True
            placer = new_placer(session, cluster, PrefixIndex(9))
            request = GenerateRequest(
                request_id="r", prompt=(1, 2), sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial, arrival = Trial(), just_arrived()
            placed = await placer.place(request, 1, trial, arrival.began + 1, arrival)
            with pytest.raises(DeadlineExceeded):
                placer.failed(placed, trial, DeadlineExceeded("too late"), num_output=0)
            assert not trial.excluded
            await cluster.close()

    asyncio.run(test())
