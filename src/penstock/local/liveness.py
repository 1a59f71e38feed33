"""Asks parts how they are, and kills one that is frozen or stuck for long, as Kubernetes' liveness probe would."""

import asyncio
import signal
from collections.abc import Callable
from urllib.parse import urlsplit

from penstock.local.child import Child

CHECK_S = 2.0
FAILURES = 5
"""So many checks in a row must fail: a machine that was busy for a moment kills nothing."""


async def answers_200(url: str, path: str) -> bool:
    """Whether GET `path` is answered with 200 within a second."""
    there = urlsplit(url)
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(there.hostname, there.port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {there.netloc}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def kill_when_stuck(url: str, child: Child, on_kill: Callable[[], object]) -> None:
    """Checks a part's /health until it failed FAILURES times in a row, which takes 10 to 15 s; then kills it."""
    failures = 0
    while failures < FAILURES:
        await asyncio.sleep(CHECK_S)
        failures = 0 if await answers_200(url, "/health") else failures + 1
    on_kill()
    child.signal(signal.SIGKILL)
