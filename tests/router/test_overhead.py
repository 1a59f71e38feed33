"""What the router adds to a request, measured against calling the same worker directly, in the same run."""

import asyncio
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import msgspec
import pytest
import uvloop

from penstock.hop import new_session, open_hop
from penstock.protocol import Done, GenerateRequest, Sample, SamplingParams
from penstock.router.config import RouterConfig
from penstock.router.main import run_router
from tests.router.fake_worker import FakeWorker

ROUNDS = 200


@pytest.mark.slow
def test_the_router_adds_less_than_five_milliseconds(model_folder: Path, outputs: list[list[int]]) -> None:
    with ExitStack() as stack:
        worker_url = stack.enter_context(_process(_serve_worker, outputs))
        config = RouterConfig(model=str(model_folder), port=_free_port(), decode=worker_url)
        router_url = stack.enter_context(_process(_serve_router, config))
        direct_ms, routed_ms = uvloop.run(_measure(worker_url, router_url))
    direct, routed = statistics.median(direct_ms), statistics.median(routed_ms)
    print(f"p50: direct {direct:.2f} ms, routed {routed:.2f} ms, added {routed - direct:.2f} ms")
    assert routed - direct < 5


@contextmanager
def _process(serve: Callable[..., None], *args: object) -> Iterator[str]:
    """Runs `serve(pipe, *args)` in a process of its own, as in production; yields the URL it reports."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *args), daemon=True)
    process.start()
    try:
        assert here.poll(20), "the process did not start"
        yield here.recv()
    finally:
        process.terminate()
        process.join(10)
        process.close()
        here.close()
        there.close()


def _serve_worker(pipe: Connection, outputs: list[list[int]]) -> None:
    async def serve() -> None:
        worker = FakeWorker(outputs)
        await worker.start()
        pipe.send(worker.url)
        await asyncio.Event().wait()

    uvloop.run(serve())


def _serve_router(pipe: Connection, config: RouterConfig) -> None:
    async def report_when_ready() -> None:
        url = f"http://{config.host}:{config.port}"
        async with aiohttp.ClientSession() as session:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/ready") as answer:
                        if answer.status == 200:
                            return pipe.send(url)
                await asyncio.sleep(0.02)

    threading.Thread(target=lambda: asyncio.run(report_when_ready()), daemon=True).start()
    run_router(config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _measure(worker: str, router: str) -> tuple[list[float], list[float]]:
    """Milliseconds of single short requests, direct and routed in turns."""
    direct_ms, routed_ms = [], []
    body = msgspec.json.encode(
        {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "stream": True}
    )
    async with new_session() as hops, aiohttp.ClientSession() as session:
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await _ask_worker(hops, worker)
            direct_ms.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            async with session.post(f"{router}/v1/chat/completions", data=body) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            routed_ms.append(1000 * (time.perf_counter() - began))
    return direct_ms[20:], routed_ms[20:]


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
