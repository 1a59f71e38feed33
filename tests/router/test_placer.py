"""What the placer books."""

import asyncio

import aiohttp

from penstock.protocol import GenerateRequest, Sample, SamplingParams
from penstock.router.cluster import Cluster, Member
from penstock.router.flow.arrival import Arrival
from penstock.router.flow.patience import Patience
from penstock.router.flow.room import Room
from penstock.router.flow.tenants import ANYONE
from penstock.router.index.prefix_index import PrefixIndex
from penstock.router.metrics import Metrics
from penstock.router.placer import Placer, Trial
from penstock.router.policy import LeastWork


def test_only_the_answers_that_are_placed_are_booked() -> None:
    """An answer that goes on alone is one of the request's three."""

    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster.add(Member("http://d", "decode"))
            cluster.workers[0].ready = True
            placer = Placer(
                session,
                cluster,
                LeastWork(),
                PrefixIndex(9),
                Metrics(),
                max_attempts=4,
                wait_s=1.0,
                room=Room(0.25),
                most_waiting=9,
                longest_wait_s=9.0,
            )
            request = GenerateRequest(
                request_id="r",
                prompt=(1, 2),
                sampling=SamplingParams(max_tokens=20),
                samples=tuple(Sample(index, 1) for index in range(3)),
            )
            for num_answers in (3, 1):
                now = asyncio.get_running_loop().time()
                arrival = Arrival("r", ANYONE, Patience(1, 1, 1), now)
                placed = await placer.place(request, num_answers, Trial(), now + 1, arrival)
                assert cluster.snapshot().decode[0].output_tokens == 20 * num_answers
                placed.reservation.release()
            await cluster.close()

    asyncio.run(test())
