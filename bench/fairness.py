"""What a greedy tenant costs the others: time to first token beside a tenant that sends a hundred times its share.

    python -m bench.fairness [--seconds 40] [--rounds 4]

Five tenants on one prefill and one decode worker, which their shares fill to 60 % (measured first). Four send their
share all the time, in Poisson arrivals; the fifth sends its share, then a hundred times as much, in turns. The same
with one API key for all shows what the tenants are worth. In a last part a sixth asks for three times what the workers
can do, repeats every refused request once, at the time that the router told, and counts how many are let in.

All that with workers that have a device of their own, as GPUs are (timed_worker.py), and with workers that compute, on
the cores that the router and the client need too: what everybody loses when those are full is in the second figures.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from bench.cluster import running
from bench.models import SMALL, write_model
from bench.report import Report, compare, percentile
from penstock.router.flow.keys import new_key

LIGHT = tuple(f"light-{number}" for number in range(4))
GREEDY = "greedy"
PATIENT = "patient"
SHARE = 0.6 / 5
"""Of the capacity, for each tenant."""
TIMES = 100
PROMPT_TOKENS, OUTPUT_TOKENS = 3000, 8
WORKERS = {"devices": "bench.timed_worker", "cores": "penstock.cli"}
"""What the workers compute on, and the program that they are."""
_OTHERS = 16
"""Tokens of a prompt that are other ones each time: a block."""


@dataclass
class Client:
    """One tenant's. Prompts begin with other tokens each time, so that none is in a cache."""

    url: str
    model: str
    key: str
    seed: int
    vocab: int
    prompt_tokens: int = PROMPT_TOKENS
    retries: int = 0
    ttft_s: list[float] = field(default_factory=list)
    refused: int = 0
    retried: int = 0
    let_in: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        rest = (self._random.randrange(300, self.vocab) for _ in range(self.prompt_tokens - _OTHERS))
        self._rest = b",".join(b"%d" % token for token in rest)

    def _body(self) -> bytes:
        """Made quickly: the machine has few cores, and a client that floods would slow down the workers."""
        others = b"".join(b"%d," % self._random.randrange(300, self.vocab) for _ in range(_OTHERS))
        fields = {"model": self.model, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}
        return b'{"prompt":[' + others + self._rest + b"]," + msgspec.json.encode(fields)[1:]

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """Streams one answer; notes when its first token came."""
        body = self._body()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        for attempt in range(self.retries + 1):
            self.retried += attempt > 0
            began = time.perf_counter()
            async with session.post(f"{self.url}/v1/completions", data=body, headers=headers) as answer:
                if answer.status == 200:
                    self.let_in += attempt > 0
                    await self._read(answer, began)
                    return
                self.refused += 1
                if answer.status not in (429, 503):
                    self.failed += 1
                    return
                wait_s = float(answer.headers["retry-after-ms"]) / 1000
            if attempt < self.retries:
                await asyncio.sleep(wait_s)

    async def _read(self, answer: aiohttp.ClientResponse, began: float) -> None:
        has_token = False
        async for line in answer.content:
            if line.startswith(b"data:") and not has_token:
                has_token = True
                self.ttft_s.append(time.perf_counter() - began)
        self.failed += not has_token

    async def ask_often(self, session: aiohttp.ClientSession, per_s: float, seconds: float) -> None:
        """Poisson arrivals, without waiting for answers; all have ended when this returns, or are given up with it."""
        due = time.monotonic()
        end = due + seconds
        async with asyncio.TaskGroup() as group:
            while (due := due + self._random.expovariate(per_s)) < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self.ask(session))


@dataclass(frozen=True)
class Target:
    """The router, and the tenants' keys."""

    url: str
    model: str
    keys: dict[str, str]
    vocab: int

    def client(self, tenant: str, seed: int, retries: int = 0) -> Client:
        return Client(self.url, self.model, self.keys[tenant], seed, self.vocab, retries=retries)


@dataclass(frozen=True)
class Phase:
    """What happened while the greedy tenant sent so many times its share."""

    ttft_s: list[float]
    """Of the others."""
    others_refused: int
    greedy_refused: int


async def capacity(target: Target, seconds: float) -> float:
    """Requests per second with eight in flight."""
    client = target.client(GREEDY, 1)
    end = time.monotonic() + seconds

    async def keep_asking(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            await client.ask(session)

    async with new_session() as session:
        await client.ask(session)
        began = time.monotonic()
        await asyncio.gather(*(keep_asking(session) for _ in range(8)))
    return (len(client.ttft_s) - 1) / (time.monotonic() - began)


async def phase(target: Target, per_s: float, times: float, seconds: float, seed: int) -> Phase:
    """Four tenants send `per_s`, the greedy one `times` as much, whose requests are given up when theirs have ended."""
    others = [target.client(tenant, seed + number) for number, tenant in enumerate(LIGHT)]
    greedy = target.client(GREEDY, seed + 99)
    async with new_session() as session, new_session() as greedy_session:
        asking = asyncio.ensure_future(greedy.ask_often(greedy_session, times * per_s, seconds))
        await asyncio.gather(*(client.ask_often(session, per_s, seconds) for client in others))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await settle(target)
    if sum(client.failed for client in others):
        raise SystemExit("requests of the other tenants failed")
    ttft_s = [one for client in others for one in client.ttft_s]
    return Phase(ttft_s, sum(client.refused for client in others), greedy.refused)


async def retries(target: Target, per_s: float, seconds: float) -> Client:
    """Three times what the workers can do; everyone who is refused comes back once, when told."""
    client = target.client(PATIENT, 7, retries=1)
    async with new_session() as session:
        await client.ask_often(session, per_s, seconds)
    return client


async def settle(target: Target) -> None:
    """Until the greedy tenant's queue is empty."""
    async with new_session() as session:
        while True:
            async with session.get(f"{target.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            if "penstock_router_running_requests 0.0" in lines:
                return
            await asyncio.sleep(0.1)


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))


def write_keys(path: Path) -> dict[str, str]:
    """A key file with all tenants; returns the keys."""
    keys, entries = {}, []
    for tenant in (*LIGHT, GREEDY, PATIENT):
        keys[tenant], digest = new_key()
        entries.append(f'[{tenant}]\nkey_sha256 = ["{digest}"]\n')
    path.write_text("".join(entries))
    return keys


@contextmanager
def cluster(folder: Path, worker: str, **router_flags: object) -> Iterator[Target]:
    """One worker of each role, of the program `worker`, behind a router with a key per tenant."""
    model = write_model(SMALL, folder / SMALL.name)
    keys = write_keys(folder / "keys.toml")
    flags: dict[str, object] = {"model": model, "secret": "bench", "threads": 1, "kv_bytes": "192MiB"}
    with (
        running("prefill", worker, **flags) as prefill,
        running("decode", worker, **flags) as decode,
        running(
            "router",
            model=model,
            secret="bench",
            prefill=prefill.url,
            decode=decode.url,
            keys=folder / "keys.toml",
            **router_flags,
        ) as router,
    ):
        yield Target(router.url, SMALL.name, keys, SMALL.vocab)


async def measure(report: Report, where: str, target: Target, *, seconds: float, rounds: int) -> None:
    """Adds rows for the workers on `where`, a key of WORKERS."""
    per_s = SHARE * await capacity(target, 8)
    together = Target(target.url, target.model, dict.fromkeys(target.keys, target.keys[GREEDY]), target.vocab)
    found: dict[str, list[Phase]] = {"share": [], "greedy": [], "one key": []}
    for number in range(rounds):
        found["share"].append(await phase(target, per_s, 1, seconds, 1000 * number))
        found["greedy"].append(await phase(target, per_s, TIMES, seconds, 1000 * number))
    found["one key"].append(await phase(together, per_s, TIMES, seconds / 2, 0))
    ttft_ms = {name: [1e3 * one for each in phases for one in each.ttft_s] for name, phases in found.items()}
    p50 = {name: percentile(values, 50) for name, values in ttft_ms.items() if values}
    p95 = {name: percentile(values, 95) for name, values in ttft_ms.items() if values}
    own = "the fifth sends its share"
    report.rows += [
        compare(f"{where}: others' TTFT p95 beside a tenant at 100x its share", "ms", p95["greedy"], p95["share"], own),
        compare(f"{where}: the same, times as long as beside its share", "x", p95["greedy"] / p95["share"], limit=1.2),
        compare(f"{where}: others' TTFT p50 beside a tenant at 100x its share", "ms", p50["greedy"], p50["share"], own),
    ]
    if "one key" in p95:
        report.rows.append(compare(f"{where}: others' TTFT p95, one API key for all", "ms", p95["one key"]))
    refused = {name: sum(each.others_refused for each in phases) for name, phases in found.items()}
    report.rows += [
        compare(f"{where}: others' requests refused beside a tenant at 100x", "requests", refused["greedy"]),
        compare(f"{where}: others' requests refused, one API key for all", "requests", refused["one key"]),
    ]
    client = await retries(target, 3 * per_s / SHARE, seconds / 2)
    if client.retried:
        what = f"{where}: refused requests that are let in when they come back as told"
        report.rows.append(compare(what, "%", 100 * client.let_in / client.retried))
    report.notes += [
        f"{where}: {per_s:.2f} requests/s per tenant and share, "
        f"{PROMPT_TOKENS} tokens of prompt and {OUTPUT_TOKENS} of answer",
        f"{where}: {len(ttft_ms['share'])} and {len(ttft_ms['greedy'])} answers of the others, "
        f"{sum(each.greedy_refused for each in found['greedy'])} refusals of the greedy tenant",
        f"{where}: {client.retried} requests came back after their Retry-After, at three times the capacity",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="length of each phase (default: 40)")
    parser.add_argument("--rounds", type=int, default=4, help="how often each phase is run (default: 4)")
    arguments = parser.parse_args()
    report = Report("fairness", notes=["the router refuses what would wait more than 10 s (--max-wait-s)"])
    for where, worker in WORKERS.items():
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            cluster(Path(folder), worker, max_wait_s=10) as target,
        ):
            asyncio.run(measure(report, where, target, seconds=arguments.seconds, rounds=arguments.rounds))
    report.finish()


if __name__ == "__main__":
    main()
