"""What the router costs a request, in processor time, beside what the hop alone costs a worker that does nothing else:
machines differ, and one machine from hour to hour, but the two alike.

The latency it adds is printed beside it; `bench.router_overhead` measures that on a quiet machine.
"""

import asyncio
import os
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import msgspec
import pytest
import uvloop

from penstock.hop import new_session, open_hop
from penstock.listen import free_port
from penstock.protocol import Done, GenerateRequest, Sample, SamplingParams
from penstock.router.config import RouterConfig
from tests.router.fake_worker import FakeWorker
from tests.router.processes import Running, running_process, serve_router

NUM_BLOCKS, NUM_ROUNDS = 5, 50
MOST_HOPS = 10
"""A request may cost the router as much as so many hops cost a worker: about 4, 6 beside other work."""


@pytest.mark.slow
def test_a_request_costs_the_router_no_more_than_some_hops(model_folder: Path, outputs: list[list[int]]) -> None:
    with ExitStack() as stack:
        worker = stack.enter_context(running_process(_serve_worker, outputs))
        config = RouterConfig(model=str(model_folder), port=free_port(), decode=worker.url)
        router = stack.enter_context(running_process(serve_router, config))
        uvloop.run(_measure(worker.url, router.url))  # the first requests of a process cost more
        router_s, worker_s = _processor_s(router), _processor_s(worker)
        blocks = [uvloop.run(_measure(worker.url, router.url)) for _ in range(NUM_BLOCKS)]
        cost_ms = 1000 * (_processor_s(router) - router_s) / (NUM_BLOCKS * NUM_ROUNDS)
        hop_ms = 1000 * (_processor_s(worker) - worker_s) / (2 * NUM_BLOCKS * NUM_ROUNDS)  # direct, and routed
    # Other work on the machine only ever adds: the quietest block is nearest to the truth.
    direct_ms, routed_ms = min(blocks, key=lambda block: block[1] - block[0])
    print(f"p50: direct {direct_ms:.2f} ms, routed {routed_ms:.2f} ms, added {routed_ms - direct_ms:.2f} ms")
    print(f"processor time per request: router {cost_ms:.2f} ms, worker {hop_ms:.2f} ms")
    assert cost_ms < MOST_HOPS * hop_ms


def _processor_s(running: Running) -> float:
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve_worker(pipe: Connection, outputs: list[list[int]]) -> None:
    async def serve() -> None:
        worker = FakeWorker(outputs)
        await worker.start()
        pipe.send(worker.url)
        await asyncio.Event().wait()

    uvloop.run(serve())


async def _measure(worker: str, router: str) -> tuple[float, float]:
    """Median milliseconds of single short requests, direct and routed in turns."""
    direct_ms, routed_ms = [], []
    body = msgspec.json.encode(
        {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    )
    async with new_session() as hops, aiohttp.ClientSession() as session:
        for _ in range(NUM_ROUNDS):
            began = time.perf_counter()
            await _ask_worker(hops, worker)
            direct_ms.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            async with session.post(f"{router}/v1/chat/completions", data=body) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            routed_ms.append(1000 * (time.perf_counter() - began))
    return statistics.median(direct_ms), statistics.median(routed_ms)


async def _ask_worker(session: aiohttp.ClientSession, url: str) -> None:
    request = GenerateRequest(
        request_id="direct",
        prompt=tuple(range(20)),
        sampling=SamplingParams(max_tokens=1),
        samples=(Sample(0, 1),),
    )
    async with open_hop(session, f"{url}/generate", request) as hop:
        async for frame in hop.frames():
            if isinstance(frame, Done):
                return
