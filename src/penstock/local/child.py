"""A running part of local mode, whoever forked it: its pid, when it is ready, how it ended."""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """How a process ended. `refusal` is its own word when its configuration is to blame."""

    how: str
    refusal: str | None = None


class Child:
    """One process. `ready` and `ended` are set once each, by whoever watches it."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[tuple[str, ...]] = loop.create_future()
        """A remark for the line that says so, and notes for lines of their own."""
        self.ended: asyncio.Future[End] = loop.create_future()
        self.refusal: str | None = None

    def end(self, how: str) -> None:
        """The process is gone."""
        if not self.ended.done():
            self.ended.set_result(End(how, self.refusal))

    def watch(self, watcher: Coroutine[None, None, None]) -> None:
        """Runs `watcher` beside until the process has ended."""
        task = asyncio.ensure_future(watcher)
        self.ended.add_done_callback(lambda _: task.cancel())

    def signal(self, number: int) -> None:
        """Sends a signal unless the process has ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait_end(self) -> End:
        """Waits until the process has ended."""
        await asyncio.wait((self.ended,))  # a plain await would cancel the future along with its reader
        return self.ended.result()

    async def outcome(self) -> bool:
        """Waits until the process is ready (True) or has ended (False)."""
        await asyncio.wait((self.ready, self.ended), return_when=asyncio.FIRST_COMPLETED)
        return self.ready.done()


async def process_ended(pid: int) -> None:
    """Returns when the process `pid` has ended; the caller reaps it."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
