"""Runs a coroutine in the terminal's foreground: Ctrl-C, SIGTERM or a closed terminal cancel it, and it cleans up."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine

from penstock.local.report import Report, Stopwatch


def run_foreground(main: Coroutine[None, None, int], report: Report) -> int:
    """The exit status of `main`, or 0 when it was asked to stop."""
    return asyncio.run(_run(main, report))


async def _run(main: Coroutine[None, None, int], report: Report) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    running = asyncio.ensure_future(main)
    stopping = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        return running.result()
    report.say("\nstopping")
    watch = Stopwatch()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    report.say(f"stopped in {watch}")
    return 0
