"""How often the router knows exactly how many prompt tokens a worker will find in its cache.

    python -m bench.cached_tokens [--requests 10000]

Conversations of several turns, many of which begin with the same system prompt, over real workers whose caches hold a
small part of them. Once with prefill workers, and once, with a fifth of the requests, without. The router counts for
each request whether what was found equals what it had predicted when it placed the request.
"""

import argparse
import asyncio
import random
import re
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.cluster import Process, first_model, running
from bench.models import Shape, write_model
from bench.report import Report, Row, compare

TINY = Shape("tiny", hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=2048)
LAYOUTS = {"2 prefill and 2 decode workers": (2, 2, 1.0), "3 decode workers": (0, 3, 0.2)}
"""Of each: prefill workers, decode workers, part of the requests."""
BLOCK_TOKENS, NUM_BLOCKS = 16, 768
ENGINE = {"block_size": BLOCK_TOKENS, "num_blocks": NUM_BLOCKS, "max_step_tokens": 256, "threads": 1, "secret": "bench"}
SYSTEMS, TURNS, IN_FLIGHT = 24, 6, 8
LETTERS = 258
"""Token ids below stand for bytes and special tokens."""


class Load:
    """Conversations, of which each waits for its answer before it goes on."""

    def __init__(self, router: str, num_requests: int) -> None:
        self._url = f"{router}/v1/completions"
        self._model = first_model(router)
        self._left = num_requests
        self._rng = random.Random(5)
        self._systems = [self._tokens(self._rng.randrange(40, 300)) for _ in range(SYSTEMS)]
        self.cached_tokens = self.prompt_tokens = self.failed = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._converse(session) for _ in range(IN_FLIGHT)))

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(LETTERS, TINY.vocab) for _ in range(count)]

    async def _converse(self, session: aiohttp.ClientSession) -> None:
        """One conversation after the other; a third of them begin with a system prompt that nobody else has."""
        paused: list[list[int]] = []
        while self._left > 0:
            if paused and self._rng.random() < 0.5:
                prompt = paused.pop(self._rng.randrange(len(paused)))
            else:
                prompt = list(self._rng.choice(self._systems)) if self._rng.random() < 0.67 else self._tokens(90)
            for _ in range(self._rng.randrange(1, TURNS)):
                prompt += self._tokens(self._rng.randrange(4, 60))
                prompt += await self._ask(session, prompt)
            paused = [*paused[-20:], prompt]  # somebody comes back to it later, when it may be evicted

    async def _ask(self, session: aiohttp.ClientSession, prompt: list[int]) -> list[int]:
        """The answer's token ids, as far as their text tells them."""
        self._left -= 1
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": self._rng.randrange(1, 24),
            "logprobs": 0,
            "ignore_eos": True,
        }
        async with session.post(self._url, data=msgspec.json.encode(body), headers=JSON) as response:
            answer = msgspec.json.decode(await response.read())
        if response.status != 200:
            self.failed += 1
            return []
        self.prompt_tokens += answer["usage"]["prompt_tokens"]
        self.cached_tokens += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        ids = []
        for text in answer["choices"][0]["logprobs"]["tokens"]:
            if not re.fullmatch(r"t\d+", text):
                break
            ids.append(int(text[1:]))
        return ids


JSON = {"content-type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="requests (default: 10000)")
    arguments = parser.parse_args()
    report = Report("cached_tokens")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = write_model(TINY, Path(folder) / TINY.name)
        for what, (num_prefill, num_decode, part) in LAYOUTS.items():
            report.rows += measure(what, model, num_prefill, num_decode, round(part * arguments.requests))
    report.notes.append(f"{IN_FLIGHT} conversations at a time; each worker caches {NUM_BLOCKS * BLOCK_TOKENS} tokens")
    report.finish()


def measure(what: str, model: Path, num_prefill: int, num_decode: int, num_requests: int) -> list[Row]:
    with ExitStack() as stack:
        flags = {"model": model, **ENGINE}
        prefill = [stack.enter_context(running("prefill", **flags)) for _ in range(num_prefill)]
        decode = [stack.enter_context(running("decode", **flags)) for _ in range(num_decode)]
        router = stack.enter_context(running("router", model=model, prefill=urls(prefill), decode=urls(decode)))
        load = Load(router.url, num_requests)
        began = time.monotonic()
        asyncio.run(load.run())
        seconds = time.monotonic() - began
        outcomes = counted(router)
        computed = sum(metric(worker, "penstock_prefill_tokens_total") for worker in (*prefill, *decode))
    total = sum(outcomes.values())
    capacity = NUM_BLOCKS * BLOCK_TOKENS * (num_prefill + num_decode)
    if load.failed or total < num_requests:
        raise SystemExit(f"{load.failed} of {num_requests} requests failed, {total} were compared")
    return [
        Row(f"{what}: requests predicted exactly", "%", exact := 100 * outcomes["exact"] / total,
            target="ours >= 99.9", met=exact >= 99.9),
        compare(f"{what}: requests compared", "requests", total),
        compare(f"{what}: fewer found than predicted", "requests", outcomes.get("fewer", 0)),
        compare(f"{what}: more found than predicted", "requests", outcomes.get("more", 0)),
        compare(f"{what}: prompt tokens computed per token of cache", "", computed / capacity),
        compare(f"{what}: prompt tokens found in a cache", "%", 100 * load.cached_tokens / load.prompt_tokens),
        compare(f"{what}: requests per second", "1/s", num_requests / seconds),
    ]  # fmt: skip


def urls(processes: list[Process]) -> str:
    return ",".join(process.url for process in processes)


def counted(router: Process) -> dict[str, float]:
    """Requests by outcome, as the router counts them."""
    found = samples(router, "penstock_router_predicted_requests_total")
    return {sample.labels["outcome"]: sample.value for sample in found}


def metric(process: Process, name: str) -> float:
    return sum(sample.value for sample in samples(process, name))


def samples(process: Process, name: str) -> list[Sample]:
    with urllib.request.urlopen(f"{process.url}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return [sample for family in families for sample in family.samples if sample.name == name]


if __name__ == "__main__":
    main()
