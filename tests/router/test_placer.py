"""What the placer books."""

import asyncio

import aiohttp
import pytest

from penstock.errors import DeadlineExceeded
from penstock.protocol import GenerateRequest, Sample, SamplingParams
from penstock.router.cluster import Cluster, Worker
from penstock.router.metrics import Metrics
from penstock.router.placer import Placer, Trial
from penstock.router.policy import LeastWork
from penstock.router.prefix_index import PrefixIndex


def test_only_the_answers_that_are_placed_are_booked() -> None:
    """An answer that goes on alone is one of the request's three."""

    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            worker = cluster._workers["http://d"] = Worker("http://d", "decode", ready=True)
            placer = Placer(session, cluster, LeastWork(), PrefixIndex(9), Metrics(), max_attempts=4, wait_s=1.0)
            request = GenerateRequest(
                request_id="r",
                prompt=(1, 2),
                sampling=SamplingParams(max_tokens=20),
                samples=tuple(Sample(index, 1) for index in range(3)),
            )
            for num_answers in (3, 1):
                placed = await placer.place(request, num_answers, Trial(), asyncio.get_running_loop().time() + 1)
                assert worker.output_tokens == 20 * num_answers
                placed.reservation.release()

    asyncio.run(test())


def test_a_deadline_that_passes_is_no_workers_failure() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            cluster = Cluster(session, 1.0)
            cluster._workers["http://d"] = Worker("http://d", "decode", ready=True)
            metrics = Metrics()
            placer = Placer(session, cluster, LeastWork(), PrefixIndex(9), metrics, max_attempts=4, wait_s=1.0)
            request = GenerateRequest(
                request_id="r", prompt=(1, 2), sampling=SamplingParams(max_tokens=20), samples=(Sample(0, 1),)
            )
            trial = Trial()
            placed = await placer.place(request, 1, trial, asyncio.get_running_loop().time() + 1)
            with pytest.raises(DeadlineExceeded):
                placer.failed(placed, trial, DeadlineExceeded("too late"), num_output=0)
            assert not trial.excluded
            assert not metrics.replacements.labels(reason="deadline_exceeded")._value.get()

    asyncio.run(test())
