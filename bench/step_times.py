"""How long a worker's steps take: fits the simulator's model to a measured worker, and prints how far off it is.

    python -m bench.step_times [--shape 135m] [--write KIND.json]

A prefill and a decode worker of this machine compute prompts of several lengths and decode batches of several sizes,
and say on /events how long each step took. Costs are fitted to four fifths of the steps, with the router's own fit;
the error is that of the other fifth. Then requests arrive at random at the real pair and at a simulated one.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from bench.cluster import Cluster, running_cluster
from bench.handover import random_prompt
from bench.models import SHAPES, Shape, write_model
from bench.report import Report, Row, compare, machine, percentile
from penstock.hop import Readiness, new_session, open_hop
from penstock.protocol import Done, Error, Events, GenerateRequest, Load, Sample, SamplingParams, StepTiming, Tokens
from penstock.router.placement.costs import StepCost
from penstock.router.placement.model import StepFit
from penstock.router.policy import ClusterSnapshot, Placement, PlacementRequest
from penstock.simulator.cluster import ClusterSpec, simulate
from penstock.simulator.kinds import WorkerKind, write_kind
from penstock.simulator.trace import Trace, TraceRequest

PROMPTS = (32, 300, 1000, 3000)
BATCHES = (1, 4, 12)
OUTPUT_TOKENS = 40
ARRIVALS = 40
"""Requests of the comparison with the simulator."""
LOAD = 0.5
"""Of the prefill worker in that comparison."""


@dataclass
class Seen:
    """What was seen of the workers."""

    timings: list[StepTiming] = field(default_factory=list)
    load: Load = field(default_factory=Load)
    pulled_bytes: int = 0
    pull_s: float = 0.0


@dataclass
class Answer:
    """What the client saw of one request, in seconds after its sending."""

    tokens: list[float] = field(default_factory=list)
    done: Done | None = None

    @property
    def tpot_s(self) -> float:
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)


class Client:
    """Sends requests with random prompts to a decode worker, alone or with its prefill worker."""

    def __init__(self, session: aiohttp.ClientSession, cluster: Cluster, shape: Shape) -> None:
        self._session, self._cluster, self._shape = session, cluster, shape
        self._rng = random.Random(1)

    async def ask(self, prompt_tokens: int, output_tokens: int, *, pair: bool) -> Answer:
        request = GenerateRequest(
            request_id=f"step-times-{self._rng.random()}",
            prompt=random_prompt(self._rng, self._shape, prompt_tokens),
            sampling=SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True),
            samples=(Sample(index=0, seed=0),),
            prefill=self._cluster.prefill.url if pair else None,
        )
        answer, began = Answer(), time.perf_counter()
        async with open_hop(self._session, f"{self._cluster.decode.url}/generate", request) as hop:
            async for frame in hop.frames():
                if isinstance(frame, Error):
                    raise SystemExit(f"a request failed: {frame.message}")
                if isinstance(frame, Tokens):
                    answer.tokens += [time.perf_counter() - began] * len(frame.tokens)
                if isinstance(frame, Done):
                    answer.done = frame
                    break
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=SHAPES, help="shape of the model (default: 135m)")
    parser.add_argument("--write", type=Path, metavar="KIND.json", help="write the kind here, for penstock plan")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = write_model(shape, Path(folder) / shape.name)
        with running_cluster(model, kv_bytes="512MiB") as cluster:
            asyncio.run(measure(cluster, shape, arguments.write))


async def measure(cluster: Cluster, shape: Shape, path: Path | None) -> None:
    """Measures, fits, compares, reports."""
    report = Report("step_times")
    async with new_session() as session:
        client = Client(session, cluster, shape)
        async with watching(session, cluster) as seen:
            await exercise(client, seen)
        about = await readiness(session, cluster.decode.url)
        cost, rows = fit(seen.timings)
        kind = WorkerKind(
            name=f"this-{shape.name}",
            step=cost,
            kv_tokens=seen.load.num_blocks * (about.block_size or 1),
            kv_token_bytes=shape.kv_bytes_per_token(),
            link_bytes_s=seen.pulled_bytes / seen.pull_s,
            step_tokens=about.step_tokens or 1,
            source=f"bench.step_times on {machine()}",
        )
        report.rows += rows
        report.rows.append(compare("KV moved between two workers", "GB/s", kind.link_bytes_s / 1e9))
        report.rows += await beside_the_simulator(client, kind)
    report.notes.append(f"{shape.name}: {cost}")
    report.notes.append("each worker has one thread; both, their fronts and the client share the machine's cores")
    report.finish()
    if path is not None:
        write_kind(kind, path)
        print(f"written to {path}: set its price_per_hour")


@asynccontextmanager
async def watching(session: aiohttp.ClientSession, cluster: Cluster) -> AsyncIterator[Seen]:
    """Collects what both workers say on /events meanwhile."""
    seen = Seen()

    async def watch(url: str) -> None:
        async with session.get(f"{url}/events") as response:
            async for line in response.content:
                events = msgspec.json.decode(line, type=Events)
                seen.timings += events.timings
                if events.load is not None and url == cluster.decode.url:
                    seen.load = events.load

    watchers = [asyncio.create_task(watch(worker.url)) for worker in (cluster.prefill, cluster.decode)]
    try:
        yield seen
        await asyncio.sleep(0.5)  # the last events are on their way
    finally:
        for watcher in watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def readiness(session: aiohttp.ClientSession, url: str) -> Readiness:
    async with session.get(f"{url}/ready") as response:
        return msgspec.json.decode(await response.read(), type=Readiness)


async def exercise(client: Client, seen: Seen) -> None:
    """Prompts and batches of many sizes, on the decode worker alone and on the pair, twice."""
    for pair in (False, True, False, True):
        for prompt_tokens in PROMPTS:
            for batch in BATCHES:
                asked = (client.ask(prompt_tokens, OUTPUT_TOKENS, pair=pair) for _ in range(batch))
                for answer in await asyncio.gather(*asked):
                    if batch == 1 and answer.done is not None:
                        seen.pulled_bytes += answer.done.pulled_bytes
                        seen.pull_s += answer.done.pull_s


def fit(timings: list[StepTiming]) -> tuple[StepCost, list[Row]]:
    """The costs by four fifths of the steps, and how far they are from the others."""
    random.Random(1).shuffle(timings)
    cut = len(timings) * 4 // 5
    learner = StepFit()
    for timing in timings[:cut]:
        learner.add(timing)
    rows = [compare("steps measured", "steps", len(timings))]
    for what, with_prompts in (("with a prompt", True), ("that only decode", False)):
        held_out = [timing for timing in timings[cut:] if (timing.prefill_tokens > 0) is with_prompts]
        errors = [100 * abs(seconds(learner.cost, timing) / timing.seconds - 1) for timing in held_out]
        measured, fitted = sum(t.seconds for t in held_out), sum(seconds(learner.cost, t) for t in held_out)
        rows += [
            compare(f"fit error of steps {what}, p50", "%", percentile(errors, 50)),
            compare(f"fit error of steps {what}, p90", "%", percentile(errors, 90)),
            compare(f"fit error of all steps {what} together", "%", 100 * abs(fitted / measured - 1)),
        ]
    return learner.cost, rows


def seconds(cost: StepCost, timing: StepTiming) -> float:
    return cost.seconds(timing.prefill_tokens, timing.prefill_pairs, timing.decode_tokens, timing.context_tokens)


class OnePair:
    """Every request goes the way that the real ones went."""

    def choose(self, request: PlacementRequest, cluster: ClusterSnapshot) -> Placement | None:
        del request, cluster
        return Placement("d0", "p0")


async def beside_the_simulator(client: Client, kind: WorkerKind) -> list[Row]:
    """Random arrivals at the real pair, and the same ones simulated with what was measured."""
    rng = random.Random(2)
    prompts = [rng.randint(100, 3000) for _ in range(ARRIVALS)]
    mean_s = sum(kind.step.seconds(tokens, tokens**2 / 2) for tokens in prompts) / ARRIVALS
    requests, now = [], 0.0
    for index, tokens in enumerate(prompts):
        requests.append(TraceRequest(index, now, tokens, rng.randint(5, 2 * OUTPUT_TOKENS)))
        now += rng.expovariate(LOAD / mean_s)
    spec = ClusterSpec((kind,), (kind,))
    simulated = simulate(Trace("arrivals", tuple(requests)), spec, lambda _: OnePair()).outcomes

    async def ask(request: TraceRequest) -> Answer:
        await asyncio.sleep(request.arrival_s)
        return await client.ask(request.prompt_tokens, request.output_tokens, pair=True)

    real = await asyncio.gather(*map(ask, requests))
    what = f"{ARRIVALS} random arrivals, simulated (ours) and real (peer)"
    ttft = [outcome.ttft_s or 0.0 for outcome in simulated], [answer.tokens[0] for answer in real]
    tpot = [outcome.tpot_s or 0.0 for outcome in simulated], [answer.tpot_s for answer in real]
    return [
        Row(f"{what}: {name}", "ms", 1000 * percentile(ours, percent), 1000 * percentile(peer, percent), "real workers")
        for name, (ours, peer), percent in (
            ("TTFT p50", ttft, 50),
            ("TTFT p90", ttft, 90),
            ("time per output token p50", tpot, 50),
        )
    ]


if __name__ == "__main__":
    main()
