"""What the router adds to a request, against calling the same decode worker directly.

    python -m bench.router_overhead [--requests 300]

Both ways answer one token to prompts of 100 tokens, in turn, one at a time and eight at a time; the router tokenizes,
places, detokenizes and writes server-sent events. The figure is the difference of the medians, whole requests.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec

from bench.cluster import first_model, running
from bench.models import SMALL, write_model
from bench.report import Report, compare
from penstock.hop import new_session, open_hop
from penstock.protocol import Done, Error, GenerateRequest, Sample, SamplingParams

PROMPT_TOKENS = 100
LIMIT_MS = 5.0
IN_FLIGHT = (1, 8)


class Client:
    """Asks for one token, directly and through the router."""

    def __init__(self, worker: str, router: str, hops: aiohttp.ClientSession, session: aiohttp.ClientSession) -> None:
        self._worker = f"{worker}/generate"
        self._router = router
        self._model = first_model(router)
        self._hops = hops
        self._session = session
        self._rng = random.Random(1)

    async def direct(self) -> float:
        """Milliseconds of one request to the worker."""
        request = GenerateRequest(
            request_id=f"direct-{self._rng.random()}",
            prompt=tuple(self._rng.randrange(300, SMALL.vocab) for _ in range(PROMPT_TOKENS)),
            sampling=SamplingParams(max_tokens=1, temperature=0, ignore_eos=True),
            samples=(Sample(index=0, seed=0),),
        )
        began = time.perf_counter()
        async with open_hop(self._hops, self._worker, request) as hop:
            async for frame in hop.frames():
                if isinstance(frame, Error):
                    raise SystemExit(frame.message)
                if isinstance(frame, Done):
                    break
        return 1e3 * (time.perf_counter() - began)

    async def chat(self) -> float:
        """Milliseconds of one streamed chat completion; each letter is a token of this model."""
        text = "".join(self._rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(PROMPT_TOKENS - 1))
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            "temperature": 0,
            "stream": True,
        }
        began = time.perf_counter()
        async with self._session.post(f"{self._router}/v1/chat/completions", data=msgspec.json.encode(body)) as answer:
            if answer.status != 200 or not (await answer.read()).endswith(b"data: [DONE]\n\n"):
                raise SystemExit(f"the router answered {answer.status}: {await answer.text()}")
        return 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="requests of each kind (default: 300)")
    arguments = parser.parse_args()
    report = Report("router_overhead")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = write_model(SMALL, Path(folder) / SMALL.name)
        with (
            running("decode", model=model, kv_bytes="128MiB", threads=1) as worker,
            running("router", model=model, decode=worker.url) as router,
        ):
            for in_flight in IN_FLIGHT:
                direct, chat = asyncio.run(measure(worker.url, router.url, arguments.requests, in_flight))
                what, limit = f"{in_flight} in flight", LIMIT_MS if in_flight == 1 else None
                report.rows += [
                    compare(f"{what}: added by the router, p50", "ms", chat - direct, limit=limit),
                    compare(f"{what}: whole request through the router, p50", "ms", chat),
                    compare(f"{what}: whole request to the worker, p50", "ms", direct),
                ]
    report.notes.append("with 8 in flight the router also spreads their arrival over more of the worker's steps")
    report.finish()


async def measure(worker: str, router: str, requests: int, in_flight: int) -> tuple[float, float]:
    """Medians of direct and of routed requests in milliseconds, taken in turn."""
    direct: list[float] = []
    chat: list[float] = []
    async with new_session() as hops, aiohttp.ClientSession(headers={"content-type": "application/json"}) as session:
        client = Client(worker, router, hops, session)
        kinds: tuple[tuple[Callable[[], Awaitable[float]], list[float]], ...] = (
            (client.direct, direct),
            (client.chat, chat),
        )
        for _ in range(requests // in_flight + 3):
            for ask, times in kinds:
                times += await asyncio.gather(*(ask() for _ in range(in_flight)))
    skipped = 3 * in_flight
    return statistics.median(direct[skipped:]), statistics.median(chat[skipped:])


if __name__ == "__main__":
    main()
