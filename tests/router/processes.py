"""Routers and workers as processes of their own, where a test needs signals or undisturbed clocks."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import aiohttp

from penstock.router.config import RouterConfig
from penstock.router.main import run_router


@dataclass(frozen=True)
class Running:
    """A process and the URL it serves."""

    process: BaseProcess
    url: str


@contextmanager
def running_process(serve: Callable[..., None], *args: object) -> Iterator[Running]:
    """Runs `serve(pipe, *args)` in a new process until the block ends; it reports its URL through the pipe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *args), daemon=True)
    process.start()
    try:
        assert here.poll(20), "the process did not start"
        yield Running(process, here.recv())
    finally:
        process.kill()
        process.join(10)
        process.close()
        here.close()
        there.close()


def serve_router(pipe: Connection, config: RouterConfig) -> None:
    """`penstock router`, reporting once it is ready."""

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
